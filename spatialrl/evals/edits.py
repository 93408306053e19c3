"""Edits and chains, measured by the oracle; nothing is trained on this."""

import numpy as np

from spatialrl.evals import relations
from spatialrl.scenes import check, instructions
from spatialrl.scenes.graph_iou import scene_graph_iou

_NEAR = 0.15  # of a thing's centre from that of its place, shares of the side
_RESIZED = 1.1  # ratio of sides from which a thing counts as resized
MEASURES = (
    "sg_iou", "entity_iou", "relation_iou", "all_relations", "per_relation"
)


def per_image(prompts, images):
  """LAION-SG's overlaps and the oracle's verdicts, image by image.

  Args:
    prompts: list of N str of the grammar.
    images: u8[N, S, S, 3].

  Returns:
    dict from MEASURES to f64[N], all in [0, 1].
  """
  rows = []
  for graph, detections, verdict in relations.verdicts(prompts, images):
    truth, predicted, objects, predicates = check.triples(graph, detections)
    iou = scene_graph_iou(truth, predicted, objects, predicates)
    rows.append((*iou, verdict.all_relations, verdict.per_relation))
  columns = np.array(rows, float).reshape(-1, len(MEASURES)).T
  return dict(zip(MEASURES, columns, strict=True))


def outside_error(edited, source, region):
  """Mean squared error outside of the regions, f32[B], pixels in [-1, 1].

  Args:
    edited: u8[B, S, S, 3].
    source: u8[B, S, S, 3].
    region: bool[B, h, w]; the error is 0 where it is the whole image.
  """
  fold = source.shape[1] // region.shape[1]
  outside = ~np.repeat(np.repeat(region, fold, 1), fold, 2)[..., None]
  error = (edited.astype(np.float32) - source.astype(np.float32)) / 127.5
  total = (error**2 * outside).sum((1, 2, 3))
  return total / np.maximum(3 * outside.sum((1, 2, 3)), 1)


def followed(instruction, before, after):
  """Whether an edit did what it was told, by what a detector finds.

  Args:
    instruction: Instruction.
    before: dict from label to f32[4], boxes as shares of the side.
    after: the same of the edited image.

  Returns:
    bool: the thing stands at its place; or is a tenth larger or smaller than
    before; or both stand where the other one stood.
  """
  thing, other = instruction.thing, instruction.other
  if thing not in after:
    return False
  if instruction.place is not None:
    place = np.array(instructions.centre(instruction.place))
    return bool(np.abs(_centre(after[thing]) - place).max() < _NEAR)
  if thing not in before:
    return False
  if other is not None:
    return other in before and other in after and all(
        np.abs(_centre(after[a]) - _centre(before[b])).max() < _NEAR
        for a, b in ((thing, other), (other, thing))
    )
  ratio = _side(after[thing]) / _side(before[thing])
  if instruction.verb == "enlarge":
    return bool(ratio > _RESIZED)
  return bool(ratio < 1 / _RESIZED)


def _centre(box):
  return (box[:2] + box[2:]) / 2


def _side(box):
  return (box[2:] - box[:2]).mean()
