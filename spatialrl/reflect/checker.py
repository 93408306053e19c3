"""The Checker: does each relation of a prompt hold, and how surely?

RL-RIG's Checker is a vision-language model that reads the relations one by
one. Here it is a small network that looks for the two things of the prompt
(`models.checker`); the rule oracle answers the same question as its upper
bound.
"""

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.evals import relations
from spatialrl.models import checker as models
from spatialrl.reflect import editing, scenes
from spatialrl.scenes import grammar
from spatialrl.scenes import graph as graphs

MOST = max(scenes.RELATIONS)  # R, relations a prompt may state
HOLDS = 0.5  # probability from which a relation counts as holding
_COLOURS = list(graphs.COLOURS)


def indices(labels):
  """Colour and shape of labels "colour shape", i32[..., 2]."""
  words = np.char.split(np.asarray(labels, str))
  pairs = [(_COLOURS.index(c), graphs.SHAPES.index(s)) for c, s in words.flat]
  return np.array(pairs, np.int32).reshape(*words.shape, 2)


def asked(prompts):
  """What the network is asked about prompts.

  Args:
    prompts: list of B str, one to R relations between two things.

  Returns:
    (things i32[B, 2, 2], predicates i32[B, R] as if the first thing were the
    subject of all, -1 beyond those of a prompt).

  Raises:
    ValueError: for a prompt of another form.
  """
  things, out = [], np.full((len(prompts), MOST), -1, np.int32)
  for row, prompt in zip(out, prompts, strict=True):
    graph = grammar.parse(prompt)
    told = [
        r.predicate if r.subject == 0 else scenes.inverse(r.predicate)
        for r in graph.relations
    ]
    if (
        len(graph.things) != 2 or len(told) > MOST
        or not set(told) <= set(scenes.PREDICATES)
    ):
      raise ValueError(
          f"prompt {prompt!r} is not one to {MOST} relations of"
          f" {list(scenes.PREDICATES)} between two things."
      )
    things.append([thing.label for thing in graph.things])
    row[: len(told)] = [scenes.PREDICATES.index(p) for p in told]
  return indices(things), out


class Checker:
  """The learned Checker, compiled."""

  def __init__(self, config, params):
    """Args: CheckerConfig and weights."""
    self.config, self.params = config, params
    self._look = jax.jit(self._run)

  def __call__(self, images, prompts):
    """Probability that each relation holds, from `logits`."""
    return np.asarray(jax.nn.sigmoid(self.logits(images, prompts)))

  def logits(self, images, prompts):
    """What the network says of each relation.

    Args:
      images: u8[B, S, S, 3].
      prompts: list of B str, see `asked`.

    Returns:
      f32[B, R]; NaN beyond the relations of a prompt.
    """
    things, predicates = asked(prompts)
    said = np.asarray(self._look(self.params, images, things).holds)
    out = np.take_along_axis(said, np.maximum(predicates, 0), axis=1)
    return np.where(predicates >= 0, out, np.nan)

  def sight(self, images, prompts):
    """Where it sees the two things of each prompt, in order of mention.

    Args:
      images: u8[B, S, S, 3].
      prompts: list of B str.

    Returns:
      (probability of being there f32[B, 2], boxes f32[B, 2, 4], shares of the
      side).
    """
    things, _ = asked(prompts)
    seen = self._look(self.params, images, things)
    return np.asarray(jax.nn.sigmoid(seen.found)), np.asarray(seen.boxes)

  def boxes(self, images, prompts):
    """What it takes for there: list of B dicts from label to box f32[4]."""
    there, boxes = self.sight(images, prompts)
    found = []
    for prompt, sure, where in zip(prompts, there, boxes, strict=True):
      labels = [thing.label for thing in grammar.parse(prompt).things]
      seen = zip(labels, sure, where, strict=True)
      found.append({label: box for label, p, box in seen if p > HOLDS})
    return found

  def _run(self, params, images, things):
    pixels = images.astype(jnp.float32) / 127.5 - 1
    return models.apply(self.config, params, pixels, things)


class Oracle:
  """The rule oracle as a Checker, called like `Checker`: 1 or 0."""

  def __call__(self, images, prompts):
    out = np.full((len(prompts), MOST), np.nan, np.float32)
    judged = relations.verdicts(prompts, np.asarray(images))
    for row, (_, _, verdict) in zip(out, judged, strict=True):
      row[: len(verdict.relations)] = verdict.relations
    return out

  def boxes(self, images, prompts):
    """What the detector finds, `editing.found_boxes`."""
    del prompts
    return editing.found_boxes(images)


def batches(rows, batch):
  """Yields (i64[batch] of `rows`, how many of them are not padding)."""
  for start in range(0, len(rows), batch):
    real = rows[start : start + batch]
    yield np.resize(real, batch), len(real)


def in_batches(check, images, prompts, batch):
  """What a Checker says of any number of images, [N, ...], `batch` a call."""
  return np.concatenate([
      check(images[rows], [prompts[i] for i in rows])[:real]
      for rows, real in batches(np.arange(len(prompts)), batch)
  ])


def score(probability):
  """Mean over the relations of each prompt, f32[B, R] -> f32[B]."""
  return np.nanmean(probability, axis=1)


def accepted(probability):
  """Which images need no edit: every relation holds, bool[B]."""
  return ~(probability <= HOLDS).any(1)


def calibration(probability, truth, *, bins=10):
  """Balanced accuracy and expected calibration error of yes/no answers.

  ECE is that of Guo et al. (arXiv:1706.04599) in `bins` equal intervals of
  the probability of yes.

  Args:
    probability: f32[N].
    truth: bool[N]; the accuracy is balanced over the kinds that occur.
    bins: int.

  Returns:
    dict with `balanced_accuracy` and `calibration_error`.
  """
  said = probability > HOLDS
  kinds = [(said == truth)[truth == kind] for kind in (True, False)]
  balanced = np.mean([right.mean() for right in kinds if len(right)])
  place = np.minimum((probability * bins).astype(int), bins - 1)
  gap = np.bincount(place, probability - truth, bins)
  return {
      "balanced_accuracy": float(balanced),
      "calibration_error": float(np.abs(gap).sum() / len(truth)),
  }
