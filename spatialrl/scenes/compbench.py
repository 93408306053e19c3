"""T2I-CompBench's scores of a whole image, read from its detections.

The rules on a pair of boxes are `relations.t2i_2d_position` and
`relations.t2i_3d_position`.
"""

from spatialrl.scenes import relations
from spatialrl.scenes.detection import by_score

_GATE_2D = 0.5


def t2i_2d_score(
  detections, subject, reference, relation, *, near_distance=150.0
):
  """Scores one image of a T2I-CompBench 2-D prompt.

    S = conf_A / 4 + conf_B / 4 + position(A, B) / 2, and 0 if S < 1/2,

  a missing object contributes 0, and position only counts with both.

  Source: Karine-Huang/T2I-CompBench, UniDet_eval/2D_spatial_eval.py, main.
  Quirks kept: only the most confident box of each label is looked at; labels
  must match exactly; the gate is not strict, so a wrong relation is worth 0
  unless both confidences are exactly 1, when it is worth 1/2. The detector
  drops scores under 0.5 beforehand; do the same if yours does not.

  Args:
    detections: list of `Detection`.
    subject: label of A.
    reference: label of B.
    relation: of A to B, in `relations.T2I_2D_RELATIONS`.
    near_distance: unit of the boxes, see `relations.t2i_2d_position`.

  Returns:
    float in [0, 1].

  Raises:
    ValueError: if `relation` is unknown.
  """
  column = relations.column(relation, relations.T2I_2D_RELATIONS)
  ordered = by_score(detections)
  a = next((found for found in ordered if found.label == subject), None)
  b = next((found for found in ordered if found.label == reference), None)
  score = _confidence(a, b)
  if a is not None and b is not None:
    position = relations.t2i_2d_position(
      a.box, b.box, near_distance=near_distance
    )
    score += 0.5 * float(position[column])
  return score if score >= _GATE_2D else 0.0


def t2i_3d_score(detections, subject, reference, relation, depth, *, slicing):
  """Scores one image of a T2I-CompBench 3-D prompt.

    S = conf_A / 4 + conf_B / 4 + position(A, B) / 2,

  a missing object contributes 0, and position only counts with both.

  Source: Karine-Huang/T2I-CompBench, UniDet_eval/3D_spatial_eval.py, main.
  Quirks kept: no gate, so objects alone earn up to 1/2; a label matches if it
  contains the name; the list is scanned by falling score until both names
  are met, each match replacing the one before, so the box used for the name
  met first is its last one up to the first of the other name, not its best.

  Args:
    detections: list of `Detection`.
    subject: name of A, a part of its label.
    reference: name of B, a part of its label.
    relation: of A to B, in `relations.T2I_3D_RELATIONS`.
    depth: [H, W], larger is nearer; the boxes must be in its pixels.
    slicing: "yx" (intended) or "xy" (published), see `relations.mean_depth`.

  Returns:
    float in [0, 1].

  Raises:
    ValueError: if `relation` is unknown.
  """
  column = relations.column(relation, relations.T2I_3D_RELATIONS)
  ordered = by_score(detections)
  in_a = [found for found in ordered if subject in found.label]
  in_b = [found for found in ordered if reference in found.label]
  if not (in_a and in_b):
    return _confidence(next(iter(in_a), None), next(iter(in_b), None))
  a = b = None
  for found in ordered:
    a = found if subject in found.label else a
    b = found if reference in found.label else b
    if a is not None and b is not None:
      break
  position = relations.t2i_3d_position(a.box, b.box, depth, slicing=slicing)
  return _confidence(a, b) + 0.5 * float(position[column])


def _confidence(a, b):
  """A quarter of the score of each detection that is there."""
  return 0.25 * sum(float(d.score) for d in (a, b) if d is not None)
