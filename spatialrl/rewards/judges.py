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
from spatialrl.parallel import distributed, partition
from spatialrl.parallel import mesh as meshes
from spatialrl.records import Signals
from spatialrl.rewards import clip, ocr, qwen
from spatialrl.rewards.external import External, owned
from spatialrl.rewards.remote import Remote


class SpatialScore:
  """The learned reward: the mean of its Gaussian score, sigma beside it."""

  def __init__(self, config, mesh):
    """Loads `config.weights`, a path or a packaged file."""
    self._prepare(*load_reward(config.weights), mesh)

  def _prepare(self, model, params, mesh):
    self.model = model
    self.params = partition.place(mesh, "scenes", params)
    self._tokenizer = tokenizers.load()
    self._mesh, self._rows = mesh, meshes.batched(mesh)
    self._score = jax.jit(self._run, out_shardings=meshes.replicated(mesh))

  def __call__(self, images, prompts):
    """Scores images under prompts, sharded over the mesh's data axes."""
    return self._score(self.params, images, *self.encode(prompts))

  def encode(self, prompts):
    """Ids i32[B, L] and mask bool[B, L] on the mesh."""
    text = tokenizers.encode(self._tokenizer, prompts, self.model.max_tokens)
    return meshes.put_rows(self._mesh, text)

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


class Headed(SpatialScore):
  """A judge of two parts: a frozen backbone, and a head that may learn.

  Attributes:
    weights: of the head, as they were loaded or drawn.
  """

  def _prepare(self, model, backbone, weights, mesh):
    super()._prepare(model, backbone, mesh)
    self.weights = jax.device_put(weights, meshes.replicated(mesh))

  def __call__(self, images, prompts, weights=None):
    """Scores images under prompts; None is the head as it was at first."""
    ids, mask = self.encode(prompts)
    weights = self.weights if weights is None else weights
    return self._score((self.params, weights), images, ids, mask)

  def score(self, images, ids, mask, weights=None):
    """The scalar, f32[B], as a function to differentiate in the images."""
    weights = self.weights if weights is None else weights
    return self._run((self.params, weights), images, ids, mask).scalar

  def features(self, images, ids, mask):
    """What the head reads of the backbone."""
    return reward_heads.features(self.model, self.params, images, ids, mask)

  def _run(self, params, images, ids, mask):
    backbone, weights = params
    images = jax.lax.with_sharding_constraint(images, self._rows)
    seen = reward_heads.features(self.model, backbone, images, ids, mask)
    return self.read(weights, seen)


class Aspect(Headed):
  """One aspect of an image, as a head on the reward's backbone scores it.

  `scalar` is the score, or with the field `squash` its logistic, in (0, 1);
  `map` is the chance that a place shows something that contradicts the prompt.
  """

  def __init__(self, config, mesh, *, aspect):
    """Fields `weights` (of the heads), `reward` (their backbone), `squash`."""
    self._prepare(*load_heads(config.weights, config.reward), mesh)
    self._index = reward_heads.ASPECTS.index(aspect)
    self._squash = config.squash

  def read(self, weights, seen):
    """Signals of what `features` saw."""
    scores, flaws = reward_heads.read(self.model, weights, *seen)
    score = scores[:, self._index]
    return Signals(
        scalar=jax.nn.sigmoid(score) if self._squash else score,
        map=jax.nn.sigmoid(flaws),
    )


class Adversarial(Headed):
  """Does an image look like a trusted one of its prompt? It has to learn that.

  Adv-GRPO (arXiv:2511.20256): 0.7 times the logit of the whole and 0.3 times
  the mean of those of the patches, which are `map`, on a frozen encoder. Ours
  is the reward's backbone, which reads the prompt as well.
  """

  def __init__(self, config, mesh):
    """Fields `reward` (the backbone) and `seed` (of the untrained head)."""
    model, backbone = load_reward(config.reward)
    key = jax.random.key(config.seed)
    weights = reward_heads.init_discriminator(model, key)
    self._prepare(model, backbone, weights, mesh)

  def read(self, weights, seen):
    """Signals of what `features` saw."""
    whole, patches = reward_heads.Discriminator().apply(
        {"params": weights}, *seen
    )
    return Signals(
        scalar=0.7 * whole + 0.3 * patches.mean(1),
        map=reward_heads.on_grid(self.model, patches),
    )


class Patches(Headed):
  """Quality of each place of an image and of a trusted one: for PatchDPO.

  A place of the image is as good as it is unflawed, 1 - H with H the map of
  flaws. A place of the trusted image is as good as the place of the image that
  looks most like it, by the cosine of their features. The public code has the
  cosine alone, of features trained to compare patches; ours know the prompt
  and differ everywhere once an image is wrong, so the quality is the map's.
  """

  def __init__(self, config, mesh):
    """Fields `weights` (of the heads) and `reward` (their backbone)."""
    self._prepare(*load_heads(config.weights, config.reward), mesh)

  def __call__(self, images, prompts, trusted):
    """Compares images with `trusted`, both f32[B, S, S, 3]."""
    ids, mask = self.encode(prompts)
    params = self.params, self.weights
    return self._score(params, images, ids, mask, trusted)

  def _run(self, params, images, ids, mask, trusted):
    backbone, weights = params
    own, there = (
        reward_heads.features(self.model, backbone, x, ids, mask)
        for x in (images, trusted)
    )
    scores, flaws = reward_heads.read(self.model, weights, *own)
    quality = 1.0 - jax.nn.sigmoid(flaws)
    nearest = _most_alike(there[1], own[1])
    flat = quality.reshape(len(nearest), -1)
    return Signals(
        scalar=scores[:, reward_heads.ASPECTS.index("relations")],
        map=quality,
        trusted_map=jnp.take_along_axis(flat, nearest, 1).reshape(
            quality.shape
        ),
    )


def _most_alike(one, other):
  """i32[B, P]: for each row of `one` the row of `other`, f32[B, P, D] both."""
  one, other = (
      x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (one, other)
  )
  return jnp.argmax(jnp.einsum("bpd,bqd->bpq", one, other), -1)


class Oracle:
  """Share of relations that hold, read off the pixels.

  The measuring stick of every run; as a reward only where a config says so,
  for the upper bound. With the field `map_side` it also maps where the prompt's
  things are, f32[B, side, side] shares of covered area: the control for maps
  that are learned.
  """

  def __init__(self, config, mesh):
    self._mesh, self._side = mesh, config.get("map_side", 0)

  def __call__(self, images, prompts):
    rows, pixels = owned(meshes.put_rows(self._mesh, images))
    judged = relations.verdicts([prompts[i] for i in rows], pixels)
    read = {"scalar": relations.rewards(judged)}
    if self._side:
      read["map"] = relations.box_maps(judged, self._side)
    whole = meshes.replicated(self._mesh)
    return Signals(**{
        name: meshes.put(distributed.sum_rows(x, rows, len(prompts)), whole)
        for name, x in read.items()
    })

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
    "adversarial": Adversarial,
    "patches": Patches,
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
SMOOTH = ("spatial_score", "adversarial", *reward_heads.ASPECTS)
# Those whose head can learn during a run, see `refresh`.
LEARNING = ("adversarial", *reward_heads.ASPECTS)
# Those called with a trusted image of each prompt besides.
COMPARING = ("patches",)
