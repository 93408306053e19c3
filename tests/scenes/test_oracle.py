"""The oracle on renders: right when clean, nearly so when blurred and noisy."""

import numpy as np
import pytest

from spatialrl.scenes import check, layout, oracle, render, sample
from spatialrl.scenes import graph as graphs
from spatialrl.scenes.holds import holds
from spatialrl.scenes.relations import iou

SIDE = 32
LABELS = [graphs.Thing(c, s) for c in graphs.COLOURS for s in graphs.SHAPES]


def _visible(scene):
  """False for a thing inside another one of its colour: no pixel shows it."""
  graph, _ = scene
  return not any(
      r.predicate == "inside"
      and graph.things[r.subject].colour == graph.things[r.object].colour
      for r in graph.relations
  )


def _directions(rng, count):
  return sample.sample_scenes(rng, count, relations=(1, 3))


def _all_predicates(rng, count):
  scenes = sample.sample_scenes(
      rng, count, relations=(1, 3), predicates=graphs.PREDICATES
  )
  return [scene for scene in scenes if _visible(scene)]


def _inside(rng, count):
  scenes = sample.sample_scenes(
      rng, count, relations=(1,), predicates=("inside",)
  )
  return [scene for scene in scenes if _visible(scene)]


def _counts_and_sizes(rng, count):
  scenes = []
  while len(scenes) < count:
    kinds = rng.permutation(len(LABELS))[: rng.integers(1, 3)]
    things = tuple(
        graphs.Thing(
            LABELS[kind].colour,
            LABELS[kind].shape,
            (None, *graphs.SIZES)[rng.integers(3)],
            int(rng.integers(1, 5 if len(kinds) == 1 else 3)),
        )
        for kind in kinds
    )
    graph = graphs.SceneGraph(things)
    placed = layout.place(rng, graph, rounds=2)
    scenes += [(graph, placed)] if placed else []
  return scenes


SETS = {
    "directions": _directions,
    "all predicates": _all_predicates,
    "inside": _inside,
    "counts and sizes": _counts_and_sizes,
}


def _render(scenes, size=SIDE):
  return np.stack([render.render(g, places, size) for g, places in scenes])


def _blur(images, sigma=1.0):
  """Gaussian of `sigma` pixels; u8 to u8."""
  at = np.arange(images.shape[1])
  kernel = np.exp(-((at[:, None] - at) ** 2) / (2 * sigma**2))
  kernel /= kernel.sum(1, keepdims=True)
  rows = np.einsum("ij,bjkc->bikc", kernel, images.astype(float))
  return _bytes(np.einsum("ij,bkjc->bkic", kernel, rows))


def _noise(rng, images, std=25.5):
  return _bytes(images + rng.normal(0, std, images.shape))


def _bytes(values):
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _counted(found):
  return [d for d in found if d.score > check.THRESHOLD]


def _decisions(scenes, images):
  """bool list: each relation holds, its contradiction does not, both found."""
  right = []
  for (graph, _), found in zip(scenes, oracle.detect(images), strict=True):
    top = {d.label: d.box for d in reversed(_counted(found))}
    for relation in graph.relations:
      for stated, truth in ((relation, True), (relation.flipped(), False)):
        a = top.get(graph.things[stated.subject].label)
        b = top.get(graph.things[stated.object].label)
        missing = a is None or b is None
        right.append(
            not missing and bool(holds(stated.predicate, a, b)) == truth
        )
  return right


@pytest.mark.parametrize("kind", SETS)
def test_clean_scenes_are_read_without_error(kind, rng):
  scenes = SETS[kind](rng, 120)
  images = _render(scenes)
  read = oracle.detect(images)
  for (graph, places), found in zip(scenes, read, strict=True):
    found = _counted(found)
    assert len(found) == len(places.thing)
    for box, thing in zip(places.boxes, places.thing, strict=True):
      label = graph.things[thing].label
      same = [iou(d.box, box) for d in found if d.label == label]
      assert max(same, default=0) > 0.9
    assert min(d.score for d in found) > 0.95
    assert check.check(graph, found).all_relations
  assert all(_decisions(scenes, images))


@pytest.mark.parametrize("kind", ["directions", "all predicates"])
@pytest.mark.parametrize("first", ["blur", "noise"])
def test_blur_and_noise_change_hardly_a_decision(kind, first, rng):
  scenes = SETS[kind](rng, 150)
  images = _render(scenes)
  if first == "blur":
    images = _noise(rng, _blur(images))
  else:
    images = _blur(_noise(rng, images))
  assert np.mean(_decisions(scenes, images)) >= 0.97


def test_small_renders_are_read_too(rng):
  scenes = _directions(rng, 120)
  assert np.mean(_decisions(scenes, _render(scenes, 16))) > 0.97


def test_blur_alone_changes_no_decision_about_things_inside(rng):
  scenes = _inside(rng, 120)
  assert all(_decisions(scenes, _blur(_render(scenes))))


def test_noise_alone_leaves_scores_high(rng):
  scenes = _directions(rng, 60)
  images = _noise(rng, _render(scenes))
  scores = [d.score for found in oracle.detect(images) for d in found]
  assert np.mean(np.array(scores) > 0.75) > 0.98


def test_a_picture_is_read_alone_as_in_a_batch(rng):
  images = _noise(rng, _render(_all_predicates(rng, 70)), 12.0)
  together = oracle.detect(images)
  for k in (0, 1, 63, 64, len(images) - 1):
    alone = oracle.detect(images[k : k + 1])[0]
    assert [d.label for d in alone] == [d.label for d in together[k]]
    for one, other in zip(alone, together[k], strict=True):
      np.testing.assert_allclose(one.box, other.box, atol=1e-4)
      np.testing.assert_allclose(one.score, other.score, atol=1e-3)


def test_mirrored_picture_gives_mirrored_boxes(rng):
  images = _blur(_render(_directions(rng, 30)), 0.5)
  mirrored = oracle.detect(images[:, :, ::-1])
  for here, there in zip(oracle.detect(images), mirrored, strict=True):
    there = {d.label: d.box for d in there}
    assert len(here) == len(there)
    for d in here:
      x1, y1, x2, y2 = there[d.label]
      np.testing.assert_allclose(d.box, (1 - x2, y1, 1 - x1, y2), atol=2e-3)


def test_bytes_and_floats_are_read_alike(rng):
  images = _render(_directions(rng, 5))
  floats = oracle.detect(render.to_float(images))
  for one, other in zip(oracle.detect(images), floats, strict=True):
    assert [d.label for d in one] == [d.label for d in other]
    np.testing.assert_array_equal([d.box for d in one], [d.box for d in other])


def test_scores_fall_and_boxes_stay_in_the_picture(rng):
  images = _noise(rng, _render(_counts_and_sizes(rng, 20)), 50.0)
  for found in oracle.detect(images):
    scores = [d.score for d in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)
    for d in found:
      assert d.box.dtype == np.float32
      assert (d.box >= 0).all() and (d.box <= 1).all()


def test_nothing_gives_nothing():
  blank = render.render(
      graphs.SceneGraph(()), layout.Layout(*np.zeros((3, 0))), SIDE
  )
  assert oracle.detect(blank[None]) == [[]]
  assert oracle.detect(np.zeros((0, SIDE, SIDE, 3), np.uint8)) == []
  bright = np.full((1, SIDE, SIDE, 3), 255, np.uint8)
  assert not _counted(oracle.detect(bright)[0])


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((SIDE, SIDE, 3), np.uint8), "shape"),
        (np.zeros((1, SIDE, 16, 3), np.uint8), "square"),
        (np.zeros((1, SIDE, SIDE, 3)), "float64"),
        (np.full((1, SIDE, SIDE, 3), np.nan, np.float32), "finite"),
    ],
)
def test_wrong_images_are_refused(images, words):
  with pytest.raises(ValueError, match=words):
    oracle.detect(images)
