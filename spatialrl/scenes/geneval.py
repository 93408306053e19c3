"""GenEval's decision on a whole image, read from its detections.

The rule on a pair of boxes is `relations.geneval_position`.
"""

import dataclasses

import numpy as np

from spatialrl.scenes import relations
from spatialrl.scenes.detection import above, by_score

GENEVAL_MIN_SCORE = 0.3
GENEVAL_COUNTING_MIN_SCORE = 0.9
_MAX_PER_LABEL = 16


@dataclasses.dataclass(frozen=True)
class Clause:
  """One demand of a GenEval prompt.

  Attributes:
    label: class name.
    count: in an include clause, the boxes needed; in an exclude clause, the
      number that must not be reached.
    position: (relation, index of an earlier include clause), with the relation
      in `relations.RELATIONS`: where these boxes lie relative to those. None
      if the clause does not say.

  Raises:
    ValueError: if `position` names an unknown relation.
  """

  label: str
  count: int = 1
  position: tuple[str, int] | None = None

  def __post_init__(self):
    if self.position is not None:
      relations.column(self.position[0], relations.RELATIONS)


def geneval_kept(detections, *, min_score=GENEVAL_MIN_SCORE):
  """Keeps the detections that GenEval counts.

  Source: djghosh13/geneval, evaluation/evaluate_images.py, evaluate_image.
  Quirks kept: at most 16 boxes of a class; no suppression of overlapping boxes
  (its maximal overlap is 1); scores are compared strictly and in float32.

  Args:
    detections: list of `Detection`.
    min_score: confidence in [0, 1]; published values are
      `GENEVAL_MIN_SCORE`, and `GENEVAL_COUNTING_MIN_SCORE` for counting
      prompts.

  Returns:
    dict from label to f32[n, 4] boxes, most confident first; no empty entry.
  """
  kept = {}
  for found in by_score(above(detections, min_score)):
    kept.setdefault(found.label, []).append(found.box)
  return {
    label: np.stack(boxes[:_MAX_PER_LABEL]) for label, boxes in kept.items()
  }


def geneval_correct(
  detections, include, *, exclude=(), min_score=GENEVAL_MIN_SCORE
):
  """Decides whether an image satisfies a GenEval prompt.

  An include clause takes its `count` most confident boxes and fails if there
  are fewer; its position must hold between each of them and each box of the
  clause it points to (`relations.geneval_position`). An exclude clause fails
  if the class reaches its count. All clauses must hold.

  Source: djghosh13/geneval (arXiv:2310.11513), evaluation/evaluate_images.py,
  evaluate. Quirks kept: extra objects are punished by an exclude clause only;
  the position looks at the most confident boxes even if others would satisfy
  it. Left out: the colour clause, which needs a classifier on the pixels; name
  the colour in the labels instead.

  Args:
    detections: list of `Detection`.
    include: sequence of `Clause`; a prompt "A left of B" is
      [Clause(B), Clause(A, position=("left of", 0))].
    exclude: sequence of `Clause`, positions unused.
    min_score: see `geneval_kept`.

  Returns:
    bool.

  Raises:
    ValueError: if a position does not point to an earlier clause.
  """
  kept = geneval_kept(detections, min_score=min_score)
  none = np.zeros((0, 4), np.float32)
  for i, clause in enumerate(include):
    if clause.position is not None and not 0 <= clause.position[1] < i:
      raise ValueError(
        f"position of clause {i} points to clause {clause.position[1]}; it must"
        " point to an earlier one."
      )
  chosen = []
  for clause in include:
    boxes = kept.get(clause.label, none)[: clause.count]
    if len(boxes) < clause.count:
      return False
    if clause.position is not None:
      relation, target = clause.position
      column = relations.column(relation, relations.RELATIONS)
      pairs = relations.geneval_position(boxes[:, None], chosen[target])
      if not pairs[..., column].all():
        return False
    chosen.append(boxes)
  return all(
    len(kept.get(clause.label, none)) < clause.count for clause in exclude
  )
