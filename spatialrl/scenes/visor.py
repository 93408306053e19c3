"""VISOR's decision on a whole image, and its scores over many.

The rule on a pair of boxes is `relations.visor_position`.
"""

from typing import NamedTuple

import numpy as np

from spatialrl.scenes import relations
from spatialrl.scenes.detection import above


class VisorDecision(NamedTuple):
  """What VISOR reads from one image: both objects, and their relation."""

  subject: bool
  reference: bool
  correct: bool


def visor_decision(detections, subject, reference, relation, *, min_score=0.1):
  """Reads the two objects of a VISOR prompt and their relation in one image.

  The relation is right when any subject and any reference have centres on the
  right sides of each other (`relations.visor_position`).

  Source: microsoft/VISOR (arXiv:2212.10015),
  text2image_realtime_evaluate.ipynb, process_detection. Quirks kept: one good
  pair suffices, whatever the other pairs or scores; scores are compared
  strictly and in float32.

  Args:
    detections: list of `Detection`.
    subject: label of A.
    reference: label of B.
    relation: of A to B, in `relations.RELATIONS`.
    min_score: confidence in [0, 1].

  Returns:
    `VisorDecision`; `correct` implies both objects.

  Raises:
    ValueError: if `relation` is unknown.
  """
  column = relations.column(relation, relations.RELATIONS)
  kept = above(detections, min_score)
  a = [found.box for found in kept if found.label == subject]
  b = [found.box for found in kept if found.label == reference]
  correct = False
  if a and b:
    pairs = relations.visor_position(np.stack(a)[:, None], np.stack(b))
    correct = bool(pairs[..., column].any())
  return VisorDecision(bool(a), bool(b), correct)


def visor_scores(decisions):
  """Aggregates VISOR decisions over prompts and their images.

  Source: microsoft/VISOR, visor.py, get_visor_spatial and get_visor_n. Quirk
  kept: images that lack an object stay in the denominator of VISOR_n (the
  notebook of the same repository drops them). Where no image has both objects
  visor.py raises; here visor_cond is NaN.

  Args:
    decisions: bool[P, N, 3] or P lists of N `VisorDecision`: P prompts of N
      images, last axis in the order of `VisorDecision`. N is 4 as published.

  Returns:
    dict of percentages: `subject`, `reference` and `both` (OA) of images with
    the objects; `visor_cond` right given both; `visor_uncond` right overall;
    `visor_1` to `visor_N` of prompts with at least that many right images.

  Raises:
    ValueError: if there is no prompt, no image, or a ragged number of images.
  """
  if len({len(prompt) for prompt in decisions}) != 1 or not len(decisions[0]):
    raise ValueError(
      f"decisions have {sorted({len(p) for p in decisions})} images per prompt;"
      " every prompt must have the same number, at least one."
    )
  subject, reference, correct = np.moveaxis(np.asarray(decisions, bool), -1, 0)
  both = subject & reference
  right = (both & correct).sum(axis=1)
  scores = {
    "subject": subject.mean(),
    "reference": reference.mean(),
    "both": both.mean(),
    "visor_cond": right.sum() / both.sum() if both.any() else np.nan,
    "visor_uncond": right.sum() / both.size,
  }
  for n in range(1, both.shape[1] + 1):
    scores[f"visor_{n}"] = (right >= n).mean()
  return {name: 100.0 * float(value) for name, value in scores.items()}
