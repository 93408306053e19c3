"""Detections against a scene graph: what is there, what holds, where it is."""

import dataclasses

import numpy as np

from spatialrl.scenes.graph import Relation
from spatialrl.scenes.holds import holds

THRESHOLD = 0.3  # GenEval's; a detection below it is not counted


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a picture shows of a graph.

  Attributes:
    objects: one bool per thing: it is there; where several copies are asked
      for, exactly so many are.
    relations: one bool per relation, False when a thing is missing.
  """

  objects: tuple[bool, ...]
  relations: tuple[bool, ...]

  @property
  def object_recall(self):
    """Share of the things that are there."""
    return sum(self.objects) / len(self.objects)

  @property
  def per_relation(self):
    """Share of the relations that hold; 1.0 when the graph states none."""
    if not self.relations:
      return 1.0
    return sum(self.relations) / len(self.relations)

  @property
  def all_relations(self):
    """Everything is there and every relation holds."""
    return all(self.objects) and all(self.relations)


def check(graph, detections, *, threshold=THRESHOLD):
  """Judges one picture.

  Relations are decided on the most confident detection of each label, as
  GenEval does.

  Args:
    graph: SceneGraph.
    detections: list of Detection, boxes as shares of the image's side.
    threshold: smallest score that counts.

  Returns:
    Verdict.
  """
  kept = _by_label(detections, threshold)
  objects = tuple(_present(thing, kept) for thing in graph.things)
  relations = tuple(_relation_holds(graph, r, kept) for r in graph.relations)
  return Verdict(objects, relations)


def triples(graph, detections, *, threshold=THRESHOLD):
  """The scene graph that a picture shows, in the words of the true one.

  Only pairs of labels that the true graph relates, and only predicates that
  it uses, are looked at, as LAION-SG's judge is told to; inverse predicates
  are merged first, so that a wrong order costs one triple and not two.

  Args:
    graph: SceneGraph, the truth.
    detections: list of Detection.
    threshold: smallest score that counts.

  Returns:
    (true triples, predicted triples, predicted labels, predicted predicates),
    sets; triples are (label, canonical predicate, label).
  """
  kept = _by_label(detections, threshold)
  truth = graph.triples()
  pairs = {pair for a, _, b in truth for pair in ((a, b), (b, a))}
  predicates = {predicate for _, predicate, _ in truth}
  predicted = set()
  for a, b in pairs:
    if a not in kept or b not in kept:
      continue
    for predicate in predicates:
      if holds(predicate, kept[a][0].box, kept[b][0].box):
        first, _, second = Relation(0, predicate, 1).canonical()
        predicted.add(((a, b)[first], predicate, (a, b)[second]))
  labels = {thing.label for thing in graph.things if thing.label in kept}
  predicted = _unordered(predicted)
  return _unordered(truth), predicted, labels, {p for _, p, _ in predicted}


def layout_vector(graph, detections, *, threshold=THRESHOLD):
  """Where the things are: f32[things, 3] centre x, centre y, half side.

  None when one is missing. Shares of the image's side.
  """
  kept = _by_label(detections, threshold)
  if any(thing.label not in kept for thing in graph.things):
    return None
  boxes = np.stack([kept[thing.label][0].box for thing in graph.things])
  centre = (boxes[:, :2] + boxes[:, 2:]) / 2
  half = (boxes[:, 2:] - boxes[:, :2]).mean(-1, keepdims=True) / 2
  return np.concatenate([centre, half], axis=-1)


def _by_label(detections, threshold):
  """Detections of each label, most confident first."""
  kept = {}
  for detection in sorted(detections, key=lambda d: -d.score):
    if detection.score > threshold:
      kept.setdefault(detection.label, []).append(detection)
  return kept


def _present(thing, kept):
  found = len(kept.get(thing.label, ()))
  return found >= 1 if thing.count == 1 else found == thing.count


def _relation_holds(graph, relation, kept):
  labels = [graph.things[i].label for i in (relation.subject, relation.object)]
  if any(label not in kept for label in labels):
    return False
  a, b = (kept[label][0].box for label in labels)
  return bool(holds(relation.predicate, a, b))


def _unordered(found):
  """Sorts the labels of symmetric predicates, so that both orders are equal."""
  return {
      (min(a, b), p, max(a, b)) if p in ("near", "far from") else (a, p, b)
      for a, p, b in found
  }
