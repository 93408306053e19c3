"""The published spatial rules on pairs of boxes, vectorised.

Rules that judge a whole list of detections live in `geneval`, `visor` and
`compbench`, overlaps of scene graphs in `graph_iou`.

Throughout, A is the subject and B the reference of "A is left of B". Boxes are
(x1, y1, x2, y2), y down, of any leading shape; box_a and box_b broadcast
against each other. Their unit matters only where a docstring says pixels. With
c the centre of a box and w, h its sides,

  dx = cx_A - cx_B,  dy = cy_A - cy_B,  D = sqrt(dx^2 + dy^2).

Everything is computed in float64 whatever the dtype of the boxes.
"""

import numpy as np

# Columns of the boolean rules, in GenEval's words.
RELATIONS = ("left of", "right of", "above", "below")

# Columns of the T2I-CompBench scores, in its words. The first four are those
# of RELATIONS.
T2I_2D_RELATIONS = (
  "on the left of",
  "on the right of",
  "on the top of",
  "on the bottom of",
  "next to",
  "on side of",
  "near",
  "on top of",
)
T2I_3D_RELATIONS = ("in front of", "behind", "hidden")

_T2I_2D_IOU = 0.1
_T2I_3D_IOU = 0.5


def column(relation, relations):
  """Column of a relation in the answer of a rule.

  Raises:
    ValueError: if `relation` is not one of `relations`.
  """
  if relation not in relations:
    raise ValueError(
      f"relation is {relation!r}; it must be one of {', '.join(relations)}."
    )
  return relations.index(relation)


def geneval_position(box_a, box_b, *, threshold=0.1):
  """Tells where A lies relative to B, with a margin for their sizes.

  The margin is taken off each offset, the original distance normalises it:

    left  <=>  dx < 0  and  |dx| - threshold (w_A + w_B) > D / 2
    above <=>  dy < 0  and  |dy| - threshold (h_A + h_B) > D / 2

  and right, below alike with the other sign.

  Source: djghosh13/geneval (arXiv:2310.11513), evaluation/evaluate_images.py,
  relative_position. Quirks kept: two relations may hold at once (points
  between 30 and 60 degrees); overlap is not tested; no relation holds when
  both reduced offsets are under 1e-3 of the boxes' unit (pixels as published;
  in shares of the side it only silences centres closer than 0.002); the sides
  of a box whose corners are swapped count as positive. Apart from that 1e-3
  the scale of the boxes cancels.

  Args:
    box_a: f[..., 4] subject boxes.
    box_b: f[..., 4] reference boxes, same unit.
    threshold: share of the summed sides taken off each offset, no unit.

  Returns:
    bool[..., 4], columns `RELATIONS`.
  """
  offset = _centre(box_a) - _centre(box_b)
  margin = threshold * (np.abs(_sides(box_a)) + np.abs(_sides(box_b)))
  reduced = np.maximum(np.abs(offset) - margin, 0.0)
  distance = np.sqrt(np.sum(offset**2, axis=-1, keepdims=True))
  far = (reduced > 0.5 * distance) & np.any(
    reduced >= 1e-3, axis=-1, keepdims=True
  )
  return _by_sign(offset, far)


def visor_position(box_a, box_b):
  """Tells where the centre of A lies relative to the centre of B.

  left <=> dx < 0, right <=> dx > 0, above <=> dy < 0, below <=> dy > 0.

  Source: microsoft/VISOR (arXiv:2212.10015),
  text2image_realtime_evaluate.ipynb, process_detection. Quirks kept: no
  margin, sizes ignored; a generic pair therefore satisfies two relations, and
  chance is one half.

  Args:
    box_a: f[..., 4] subject boxes.
    box_b: f[..., 4] reference boxes, same unit.

  Returns:
    bool[..., 4], columns `RELATIONS`.
  """
  offset = _centre(box_a) - _centre(box_b)
  return _by_sign(offset, np.ones_like(offset, bool))


def iou(box_a, box_b):
  """Intersection over union of two boxes, areas without the +1 of pixel counts.

  Source: Karine-Huang/T2I-CompBench, UniDet_eval/2D_spatial_eval.py, which
  raises on an empty union; here it gives 0.

  Args:
    box_a: f[..., 4].
    box_b: f[..., 4], same unit.

  Returns:
    f64[...] in [0, 1].
  """
  a, b = np.asarray(box_a, np.float64), np.asarray(box_b, np.float64)
  overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(
    a[..., :2], b[..., :2]
  )
  intersection = np.prod(np.maximum(overlap, 0.0), axis=-1)
  areas = np.prod(_sides(a), axis=-1) + np.prod(_sides(b), axis=-1)
  union = areas - intersection
  empty = union == 0.0
  return np.where(empty, 0.0, intersection / np.where(empty, 1.0, union))


def t2i_2d_position(box_a, box_b, *, near_distance=150.0):
  """Soft score of each T2I-CompBench 2-D relation of A to B.

    left:  dx < 0 and |dx| > |dy|  ->  min(1, 0.1 / IoU), else 0
    top:   dy < 0 and |dy| > |dx|  ->  min(1, 0.1 / IoU), else 0
    near:  |dx| < n or |dy| < n    ->  1, else n / max(|dx|, |dy|)

  right and bottom alike with the other sign; "next to" and "on side of" are
  the same as near; n is `near_distance`.

  Source: Karine-Huang/T2I-CompBench, UniDet_eval/2D_spatial_eval.py,
  determine_position. Quirks kept: near needs only one axis within the
  distance, so random boxes score 0.98; the distance is in pixels of an image
  resized to about 480, so it is 150 / 480 for boxes in shares of the side;
  "on top of" is read from the prompt but has no rule and always scores 0; on
  an exact diagonal no direction scores.

  Args:
    box_a: f[..., 4] subject boxes.
    box_b: f[..., 4] reference boxes, same unit.
    near_distance: n, same unit.

  Returns:
    f64[..., 8] in [0, 1], columns `T2I_2D_RELATIONS`.
  """
  offset = _centre(box_a) - _centre(box_b)
  size = np.abs(offset)
  soft = _T2I_2D_IOU / np.maximum(iou(box_a, box_b), _T2I_2D_IOU)
  direction = _by_sign(offset, size > size[..., ::-1]) * soft[..., None]
  nearest, farthest = size.min(axis=-1), size.max(axis=-1)
  near = np.where(
    nearest < near_distance,
    1.0,
    near_distance / np.maximum(farthest, near_distance),
  )[..., None]
  return np.concatenate(
    [direction, near, near, near, np.zeros_like(near)], axis=-1
  )


def mean_depth(boxes, depth, *, slicing):
  """Mean of a depth map inside each box.

  Corners are truncated to integers, as the published slices are, and clipped
  to the map (its detector never leaves the image).

  Args:
    boxes: f[..., 4] in pixels of the map.
    depth: [H, W], larger is nearer. Integers make the sums exact.
    slicing: "yx" reads depth[y1:y2, x1:x2], the intended read; "xy" reads
      depth[x1:x2, y1:y2], as published although the map is [H, W].

  Returns:
    f64[...], unit of `depth`; NaN where the slice is empty.

  Raises:
    ValueError: if `slicing` is neither, or `depth` is not [H, W].
  """
  if slicing not in ("yx", "xy"):
    raise ValueError(
      f'slicing is {slicing!r}; it must be "yx" (intended) or "xy" (published).'
    )
  depth = np.asarray(depth, np.float64)
  if depth.ndim != 2:
    raise ValueError(f"depth has shape {depth.shape}; it must be [H, W].")
  if slicing == "xy":
    depth = depth.T
  height, width = depth.shape
  total = np.zeros((height + 1, width + 1))
  total[1:, 1:] = depth.cumsum(axis=0).cumsum(axis=1)
  corners = np.trunc(np.asarray(boxes, np.float64)).astype(np.int64)
  x1, x2 = (np.clip(corners[..., i], 0, width) for i in (0, 2))
  y1, y2 = (np.clip(corners[..., i], 0, height) for i in (1, 3))
  area = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
  inside = total[y2, x2] - total[y1, x2] - total[y2, x1] + total[y1, x1]
  return np.where(area > 0, inside / np.maximum(area, 1), np.nan)


def t2i_3d_position(box_a, box_b, depth, *, slicing):
  """Soft score of each T2I-CompBench 3-D relation of A to B.

  With z the mean depth inside a box (larger is nearer):

    in front of:     z_A > z_B  ->  s(IoU), else 0
    behind, hidden:  z_A < z_B  ->  s(IoU), else 0

  where s(u) = 1 if u > 1/2, 2u if u < 1/2, and 0 if u = 1/2.

  Source: Karine-Huang/T2I-CompBench, UniDet_eval/3D_spatial_eval.py,
  determine_position. Quirks kept: an IoU of exactly one half scores 0; boxes
  apart score 0 even when their depths are in order; "hidden" is "behind"; a
  box that holds no pixel scores 0. The transposed read of the map is the
  caller's choice.

  Args:
    box_a: f[..., 4] subject boxes, pixels of the map.
    box_b: f[..., 4] reference boxes, pixels of the map.
    depth: [H, W], larger is nearer.
    slicing: "yx" (intended) or "xy" (published), see `mean_depth`.

  Returns:
    f64[..., 3] in [0, 1], columns `T2I_3D_RELATIONS`.
  """
  gap = mean_depth(box_a, depth, slicing=slicing) - mean_depth(
    box_b, depth, slicing=slicing
  )
  u = iou(box_a, box_b)
  soft = np.where(u == _T2I_3D_IOU, 0.0, np.minimum(u / _T2I_3D_IOU, 1.0))
  return np.stack([gap > 0.0, gap < 0.0, gap < 0.0], axis=-1) * soft[..., None]


def _centre(boxes):
  """f[..., 4] -> f64[..., 2], (x, y)."""
  boxes = np.asarray(boxes, np.float64)
  return (boxes[..., :2] + boxes[..., 2:]) / 2


def _sides(boxes):
  """f[..., 4] -> f64[..., 2], (width, height), negative if corners swap."""
  boxes = np.asarray(boxes, np.float64)
  return boxes[..., 2:] - boxes[..., :2]


def _by_sign(offset, holds):
  """(f64[..., 2], bool[..., 2]) -> bool[..., 4], columns `RELATIONS`."""
  before, after = (offset < 0) & holds, (offset > 0) & holds
  return np.stack(
    [before[..., 0], after[..., 0], before[..., 1], after[..., 1]], axis=-1
  )
