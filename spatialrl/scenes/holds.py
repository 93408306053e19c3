"""Whether a relation holds between two boxes, and by how much.

The directions follow GenEval's published rule (see `relations`); the other
predicates have no published rule over boxes, so theirs are ours.
"""

import numpy as np

_OFFSET = 0.1  # GenEval's POSITION_THRESHOLD
_SIDE_RATIO = 1.25
_NEAR, _FAR = 0.40, 0.50


def clearance(predicate, a, b):
  """Signed distance from the point where `a predicate b` stops holding.

  * directions: (|d| - 0.1 (size_a + size_b)) / D - 1/2, with d the offset of
    the centres along the axis, D their distance; -1 on the wrong side.
    Positive exactly where GenEval's rule says yes.
  * larger or smaller: ratio of the boxes' mean sides, minus 1.25.
  * near, far: 0.40 - D and D - 0.50, in units of the image's side.
  * inside: the smallest gap between the sides of a and those of b.

  Args:
    predicate: str, one of `graph.PREDICATES`.
    a: f32[..., 4] boxes (x1, y1, x2, y2) as a share of the image's side,
      y down.
    b: f32[..., 4].

  Returns:
    f32[...], positive where the relation holds.
  """
  a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
  if predicate == "right of":
    return clearance("left of", b, a)
  if predicate == "below":
    return clearance("above", b, a)
  if predicate == "smaller than":
    return clearance("larger than", b, a)
  if predicate == "larger than":
    return _side(a) / np.maximum(_side(b), 1e-6) - _SIDE_RATIO
  if predicate == "inside":
    low, high = a[..., :2] - b[..., :2], b[..., 2:] - a[..., 2:]
    return np.concatenate([low, high], -1).min(-1)
  offset = (b[..., :2] + b[..., 2:] - a[..., :2] - a[..., 2:]) / 2
  distance = np.sqrt((offset**2).sum(-1))
  if predicate == "near":
    return _NEAR - distance
  if predicate == "far from":
    return distance - _FAR
  axis = {"left of": 0, "above": 1}[predicate]
  along = offset[..., axis]
  sizes = a[..., axis + 2] - a[..., axis] + b[..., axis + 2] - b[..., axis]
  reduced = (np.abs(along) - _OFFSET * sizes) / np.maximum(distance, 1e-6)
  return np.where(along > 0, reduced - 0.5, -1.0)


def holds(predicate, a, b):
  """bool[...]: `clearance(predicate, a, b) > 0`."""
  return clearance(predicate, a, b) > 0


def _side(box):
  return (box[..., 2] - box[..., 0] + box[..., 3] - box[..., 1]) / 2
