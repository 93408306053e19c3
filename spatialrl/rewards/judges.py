"""Judges: images and prompts in, `Signals` out.

A judge is made once for a run, from its config field, and then called with
images f32[B, S, S, 3] in [-1, 1] and the B prompts.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import tokenizers
from spatialrl.evals import relations
from spatialrl.models import reward_heads, reward_model
from spatialrl.models.build import load_heads, load_reward
from spatialrl.parallel import mesh as meshes
from spatialrl.records import Signals
from spatialrl.rewards import clip, ocr, qwen
from spatialrl.rewards.external import External
from spatialrl.rewards.remote import Remote
from spatialrl.scenes.render import to_uint8


class SpatialScore:
  """The learned reward: the mean of its Gaussian score, sigma beside it."""

  def __init__(self, config, mesh):
    """Loads `config.weights`, a path or a packaged file."""
    self._prepare(*load_reward(config.weights), mesh)

  def _prepare(self, model, params, mesh):
    self.model = model
    self.params = jax.device_put(params, meshes.replicated(mesh))
    self._tokenizer = tokenizers.load()
    self._rows = meshes.batched(mesh)
    self._score = jax.jit(self._run)

  def __call__(self, images, prompts):
    """Scores images under prompts, sharded over the mesh's data axes."""
    ids, mask = tokenizers.encode(
        self._tokenizer, prompts, self.model.max_tokens
    )
    ids, mask = jax.device_put((ids, mask), self._rows)
    return self._score(self.params, images, ids, mask)

  def score(self, images, ids, mask):
    """The same mean, f32[B], as a function to differentiate in the images."""
    return reward_model.score(self.model, self.params, images, ids, mask)[0]

  def compilations(self):
    """How many programs were compiled; 1 for a steady batch shape."""
    return self._score._cache_size()

  def _run(self, params, images, ids, mask):
    images = jax.lax.with_sharding_constraint(images, self._rows)
    mu, sigma = reward_model.score(self.model, params, images, ids, mask)
    return Signals(scalar=mu, sigma=sigma)


class Pairwise(SpatialScore):
  """Which of two images of a group is better, with room for a tie.

  Compares the means of the Gaussian score: a win where they differ by more than
  `tie_margin`, else half a win each. Pref-GRPO (arXiv:2508.20751) asks a
  vision-language model about every pair; what its cure needs is a comparator
  that can call a tie, and that is what this is.
  """

  def __init__(self, config, mesh):
    """Fields `weights`, `group` (images a prompt) and `tie_margin`."""
    super().__init__(config, mesh)
    if config.tie_margin < 0:
      raise ValueError(
          f"rewards.pairwise.tie_margin is {config.tie_margin}; it must not be"
          " negative."
      )
    self._group, self._margin = config.group, config.tie_margin

  def _run(self, params, images, ids, mask):
    signals = super()._run(params, images, ids, mask)
    score = signals.scalar.reshape(-1, self._group)
    gap = score[:, :, None] - score[:, None]
    pair = 0.5 * (1.0 + jnp.sign(gap) * (jnp.abs(gap) > self._margin))
    return dataclasses.replace(signals, pair=pair)


class Aspect(SpatialScore):
  """One aspect of an image, as a head on the reward's backbone scores it.

  `scalar` is the score, or with the field `squash` its logistic, in (0, 1);
  `map` is the chance that a place shows something that contradicts the prompt.
  """

  def __init__(self, config, mesh, *, aspect):
    """Fields `weights` (of the heads), `reward` (their backbone), `squash`."""
    model, *params = load_heads(config.weights, config.reward)
    self._prepare(model, tuple(params), mesh)
    self._index = reward_heads.ASPECTS.index(aspect)
    self._squash = config.squash

  def score(self, images, ids, mask):
    """The scalar, f32[B], as a function to differentiate in the images."""
    return self._run(self.params, images, ids, mask).scalar

  def _run(self, params, images, ids, mask):
    backbone, heads = params
    images = jax.lax.with_sharding_constraint(images, self._rows)
    scores, flaws = reward_heads.judge(
        self.model, backbone, heads, images, ids, mask
    )
    score = scores[:, self._index]
    return Signals(
        scalar=jax.nn.sigmoid(score) if self._squash else score,
        map=jax.nn.sigmoid(flaws),
    )


class Oracle:
  """Share of relations that hold, read off the pixels.

  The measuring stick of every run; as a reward only where a config says so,
  for the upper bound. With the field `map_side` it also maps where the prompt's
  things are, f32[B, side, side] shares of covered area: the control for maps
  that are learned.
  """

  def __init__(self, config, mesh):
    del mesh
    self._side = config.get("map_side", 0)

  def __call__(self, images, prompts):
    pixels = to_uint8(jax.device_get(images))
    judged = relations.verdicts(prompts, pixels)
    covered = None
    if self._side:
      covered = jnp.asarray(relations.box_maps(judged, self._side))
    return Signals(
        scalar=jnp.asarray(relations.rewards(judged)), map=covered
    )

  def compilations(self):
    """Nothing is compiled."""
    return 0


def make_judges(config, mesh):
  """The judges of a run.

  Args:
    config: ConfigDict from judge name to its settings; `weight` 0 reports a
      judge without training on it.
    mesh: the mesh in use.

  Returns:
    dict from name to judge.
  """
  for name in config:
    if name not in JUDGES:
      raise ValueError(
          f"rewards has {name!r}; allowed are {sorted(JUDGES)}."
      )
  return {name: JUDGES[name](config[name], mesh) for name in config}


def close_judges(judges):
  """Ends the workers of those judges that have any."""
  for judge in judges.values():
    if isinstance(judge, External):
      judge.close()


def check_prompts(config, prompts):
  """Refuses prompts that a judge could not score, before any is made.

  Args:
    config: as for `make_judges`.
    prompts: list of str, all that the run will ask about.
  """
  for name in config.keys() & PROMPT_CHECKS.keys():
    PROMPT_CHECKS[name](config[name], prompts)


def claims(judge, images, prompts, flips, batch):
  """Which images a judge takes for right.

  An image counts when the judge prefers the prompt over each of its
  flipped versions, for the same image: the judge's own idea of "every
  relation holds", in the unit of the oracle's accuracy.

  Args:
    judge: as `make_judges` gives.
    images: u8[N, S, S, 3].
    prompts: list of N str.
    flips: list of N lists of str, each with one relation contradicted.
    batch: rows of one call.

  Returns:
    bool[N].
  """
  rows = list(enumerate(prompts))
  rows += [(i, p) for i, others in enumerate(flips) for p in others]
  scores = []
  for start in range(0, len(rows), batch):
    chunk = [rows[k % len(rows)] for k in range(start, start + batch)]
    picked = images[[i for i, _ in chunk]].astype(np.float32) / 127.5 - 1
    signals = judge(picked, [p for _, p in chunk])
    scores.append(np.asarray(signals.scalar))
  scores = np.concatenate(scores)[: len(rows)]
  right = np.ones(len(prompts), bool)
  flipped = slice(len(prompts), None)
  for (i, _), value in zip(rows[flipped], scores[flipped], strict=True):
    right[i] &= bool(scores[i] > value)
  return right


JUDGES = {
    "spatial_score": SpatialScore,
    "pairwise": Pairwise,
    "oracle": Oracle,
    "qwen_score": qwen.QwenScore,
    "remote": Remote,
    "ocr": ocr.Ocr,
} | {
    aspect: functools.partial(Aspect, aspect=aspect)
    for aspect in reward_heads.ASPECTS
} | {
    name: functools.partial(clip.ClipJudge, name=name) for name in clip.SCORES
}
# Judges that do not take every prompt.
PROMPT_CHECKS = {"qwen_score": qwen.check, "ocr": ocr.check} | {
    name: functools.partial(clip.check, name=name) for name in clip.SCORES
}
# Those with `score`, which can be differentiated in the images.
SMOOTH = ("spatial_score", *reward_heads.ASPECTS)
