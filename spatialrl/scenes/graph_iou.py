"""Overlap of two scene graphs as sets of names, the LAION-SG metric.

Graphs here are triples of names; how triples are read off an image is the
caller's choice.
"""

from typing import NamedTuple


class SceneGraphIoU(NamedTuple):
  """The three set overlaps of LAION-SG: SG-IoU, Ent-IoU and Rel-IoU."""

  triples: float
  entities: float
  predicates: float


def scene_graph_iou(truth, predicted, objects, predicates):
  """Overlap of a predicted scene graph with the true one, as sets.

    IoU(S, T) = |S & T| / |S | T|, and 0 if the union is empty.

  Source: mengcye/LAION-SG (arXiv:2412.08580), test/test_iou.py, calculate_iou.
  Quirks kept: exact matches, so direction matters and an inverse relation is
  another triple; no instances, so two trees are one and nothing is counted;
  entities and predicates of the prediction come from their own lists and not
  from its triples.

  Args:
    truth: iterable of (subject, predicate, object) triples.
    predicted: iterable of triples.
    objects: iterable of predicted entity names.
    predicates: iterable of predicted predicate names.

  Returns:
    `SceneGraphIoU`.
  """
  truth = {tuple(triple) for triple in truth}
  names = {name for triple in truth for name in (triple[0], triple[2])}
  return SceneGraphIoU(
    triples=_set_iou(truth, {tuple(triple) for triple in predicted}),
    entities=_set_iou(names, set(objects)),
    predicates=_set_iou({triple[1] for triple in truth}, set(predicates)),
  )


def _set_iou(a, b):
  return len(a & b) / len(a | b) if a | b else 0.0
