"""The Checker: does each relation of a prompt hold, and how surely?

RL-RIG's Checker is a vision-language model that reads the relations one by
one. Here it is the backbone of the packaged reward with a logistic head, asked
about one relation a sentence; the rule oracle answers the same question as its
upper bound.
"""

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import tokenizers
from spatialrl.evals import relations
from spatialrl.models import reward_model
from spatialrl.reflect import scenes
from spatialrl.scenes import grammar
from spatialrl.scenes.graph import SceneGraph

MOST = max(scenes.RELATIONS)  # R, relations a prompt may state
TOKENS = tokenizers.caption_tokens(1)
HOLDS = 0.5  # probability from which a relation counts as holding


def clauses(prompt):
  """One sentence for each relation of a prompt."""
  graph = grammar.parse(prompt)
  return [
      grammar.prompt(SceneGraph(graph.things, (relation,)).in_mention_order())
      for relation in graph.relations
  ]


class Checker:
  """The learned Checker, compiled."""

  def __init__(self, model, params):
    """Args: RewardConfig and weights; the mean of the score is the logit."""
    self.model, self.params = model, params
    self._tokenizer = tokenizers.load()
    self._ask = jax.jit(self._run)

  def __call__(self, images, prompts):
    """Probability that each relation holds, from `logits`."""
    return np.asarray(jax.nn.sigmoid(self.logits(images, prompts)))

  def logits(self, images, prompts):
    """What the head says of each relation.

    Args:
      images: u8[B, S, S, 3].
      prompts: list of B str of one to R relations.

    Returns:
      f32[B, R]; NaN beyond the relations of a prompt.
    """
    told = [clauses(prompt) for prompt in prompts]
    known = np.array([[k < len(row) for k in range(MOST)] for row in told])
    padded = [(row + row[:1] * MOST)[:MOST] for row in told]
    ids, mask = tokenizers.encode(
        self._tokenizer, [text for row in padded for text in row], TOKENS
    )
    out = np.asarray(self._ask(self.params, images, ids, mask))
    return np.where(known, out, np.nan).astype(np.float32)

  def _run(self, params, images, ids, mask):
    rows = images.shape[0]
    pixels = jnp.repeat(images.astype(jnp.float32) / 127.5 - 1, MOST, axis=0)
    logit, _ = reward_model.score(self.model, params, pixels, ids, mask)
    return logit.reshape(rows, MOST)


class Oracle:
  """The rule oracle as a Checker, called like `Checker`: 1 or 0."""

  def __call__(self, images, prompts):
    out = np.full((len(prompts), MOST), np.nan, np.float32)
    judged = relations.verdicts(prompts, np.asarray(images))
    for row, (_, _, verdict) in zip(out, judged, strict=True):
      row[: len(verdict.relations)] = verdict.relations
    return out


def batches(rows, batch):
  """Yields (i64[batch] of `rows`, how many of them are not padding)."""
  for start in range(0, len(rows), batch):
    real = rows[start : start + batch]
    yield np.resize(real, batch), len(real)


def in_batches(check, images, prompts, batch):
  """What a Checker says of any number of images, f32[N, R], `batch` a call."""
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
