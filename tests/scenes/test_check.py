"""Verdicts over detections that are given, not read from pixels."""

import numpy as np

from spatialrl.scenes import check, grammar, perturb, sample
from spatialrl.scenes import graph as graphs
from spatialrl.scenes.detection import Detection
from spatialrl.scenes.graph_iou import scene_graph_iou


def _detections(graph, places, score=0.9):
  return [
      Detection(graph.things[thing].label, box, score)
      for thing, box in zip(places.thing, places.boxes, strict=True)
  ]


def test_true_boxes_satisfy_their_graph_and_break_the_perturbed_one(rng):
  scenes = sample.sample_scenes(
      rng, 60, relations=(1, 3), predicates=graphs.PREDICATES
  )
  for graph, places in scenes:
    found = _detections(graph, places)
    verdict = check.check(graph, found)
    assert verdict.all_relations
    assert verdict.object_recall == verdict.per_relation == 1.0
    other = perturb.perturb(rng, graph, relations=(1, 3))
    verdict = check.check(other, found)
    assert all(verdict.objects) and not verdict.all_relations
    wrong = round((1 - verdict.per_relation) * len(other.relations))
    assert wrong >= perturb.contradicted(graph, other)


def test_counted_things_need_their_exact_number():
  box = np.float32([0.1, 0.1, 0.2, 0.2])
  two = graphs.SceneGraph((graphs.Thing("red", "circle", None, 2),))
  one = graphs.SceneGraph((graphs.Thing("red", "circle"),))
  for copies in range(5):
    found = [Detection("red circle", box, 0.9)] * copies
    assert check.check(two, found).objects == (copies == 2,)
    assert check.check(one, found).objects == (copies >= 1,)
  verdict = check.check(two, [])
  assert verdict.per_relation == 1.0 and not verdict.all_relations
  ghost = [Detection("red circle", box, 0.2)]
  assert check.check(two, found[:2] + ghost).objects == (True,)


def test_relations_use_the_most_confident_detection_and_fail_without():
  graph = grammar.parse("a red circle left of a blue square")
  left, middle, right = (
      np.float32([x, 0.4, x + 0.2, 0.6]) for x in (0.0, 0.4, 0.8)
  )
  square = Detection("blue square", middle, 0.9)
  good = Detection("red circle", left, 0.8)
  better = Detection("red circle", right, 0.9)
  assert check.check(graph, [good, square]).relations == (True,)
  assert check.check(graph, [good, square, better]).relations == (False,)
  missing = check.check(graph, [good])
  assert missing.objects == (True, False)
  assert missing.relations == (False,) and missing.object_recall == 0.5
  assert not check.check(graph, [good, square], threshold=0.85).all_relations


def test_triples_agree_with_the_graph_where_the_picture_does(rng):
  for graph, places in sample.sample_scenes(
      rng, 80, relations=(1, 3), predicates=graphs.PREDICATES
  ):
    truth, predicted, labels, predicates = check.triples(
        graph, _detections(graph, places)
    )
    overlap = scene_graph_iou(truth, predicted, labels, predicates)
    assert truth <= predicted
    assert overlap.entities == overlap.predicates == 1.0
    related = {frozenset((a, b)) for a, _, b in truth}
    assert {frozenset((a, b)) for a, _, b in predicted} <= related
    assert check.triples(graph, [])[1:] == (set(), set(), set())


def test_triples_say_what_is_there_instead():
  graph = grammar.parse("a red circle left of a blue square, a white cross")
  boxes = [
      Detection("red circle", np.float32([0.7, 0.4, 0.9, 0.6]), 0.9),
      Detection("blue square", np.float32([0.1, 0.4, 0.3, 0.6]), 0.9),
      Detection("white cross", np.float32([0.4, 0.4, 0.6, 0.6]), 0.9),
  ]
  truth, predicted, _, predicates = check.triples(graph, boxes)
  assert truth == {("red circle", "left of", "blue square")}
  assert predicted == {("blue square", "left of", "red circle")}
  assert predicates == {"left of"}


def test_layout_vector_is_where_the_things_are(rng):
  (graph, places), = sample.sample_scenes(rng, 1, relations=(3,))
  found = _detections(graph, places)
  vector = check.layout_vector(graph, found[::-1])
  assert vector.dtype == np.float32
  np.testing.assert_allclose(
      vector, np.column_stack([places.centre, places.radius]), atol=1e-6
  )
  assert check.layout_vector(graph, found[1:]) is None
