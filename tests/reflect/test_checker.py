"""The Checker: what it is asked, what it is taught, and its network."""

import json

import jax
import numpy as np
import pytest

from spatialrl.models import checker as models
from spatialrl.reflect import checker, editing, questions, scenes
from spatialrl.scenes import graph as graphs
from spatialrl.scenes.holds import holds

PROMPT = (
    "a red circle left of a blue square, a blue square larger than a red"
    " circle"
)
LABELS = [["red circle", "blue square"]] * 64
BOXES = [{
    "red circle": np.float32([0.1, 0.2, 0.3, 0.4]),
    "blue square": np.float32([0.5, 0.1, 0.9, 0.5]),
}] * 64


def test_a_prompt_is_two_things_and_what_the_first_is_to_the_second():
  things, predicates = checker.asked([PROMPT])
  colours = list(graphs.COLOURS)
  assert things.tolist() == [
      [[colours.index("red"), graphs.SHAPES.index("circle")],
       [colours.index("blue"), graphs.SHAPES.index("square")]]
  ]
  told = [scenes.PREDICATES[i] for i in predicates[0] if i >= 0]
  assert told == ["left of", "smaller than"]


@pytest.mark.parametrize("prompt", [
    "a red circle left of a blue square, a blue square above a red cross",
    "a red circle inside a blue square",
    "a red circle",
])
def test_a_prompt_of_another_form_is_refused(prompt):
  with pytest.raises(ValueError, match="is not one to 4 relations"):
    checker.asked([prompt])


def test_questions_are_answered_by_the_boxes(rng):
  asked = questions.pairs(rng, LABELS, BOXES)
  there = asked["there"]
  assert not asked["holds"][~there.all(1)].any() and 0.7 < there.mean() < 0.95
  whole = np.flatnonzero(there.all(1))
  assert 20 < len(whole) < 64
  first = checker.indices(LABELS)[0, 0]
  turned = (asked["things"][whole, 0] != first).any(-1)
  assert turned.any() and not turned.all()
  for row in whole:
    a, b = asked["boxes"][row]
    assert asked["holds"][row].tolist() == [
        bool(holds(p, a, b)) for p in scenes.PREDICATES
    ]


def test_half_of_what_is_not_there_has_the_colour_of_a_thing(rng):
  asked = questions.pairs(rng, LABELS * 4, BOXES * 4)
  absent = asked["things"][~asked["there"]]
  share = np.isin(absent[:, 0], checker.indices(LABELS)[..., 0]).mean()
  assert 0.4 < share < 0.8


def test_a_moved_picture_has_moved_boxes(rng):
  images, _, found = questions.rendered(rng, 24, 32)
  shifted = 0
  for image, boxes in zip(images, found, strict=True):
    seen, now = questions.moved(rng, image, boxes)
    (detected,) = editing.found_boxes(seen[None])
    assert detected.keys() == boxes.keys()
    for label, box in now.items():
      np.testing.assert_allclose(detected[label], box, atol=0.03)
      shifted += np.abs(box - boxes[label]).max() > 0.03
  assert shifted > 24


@pytest.fixture(scope="module")
def made():
  config = models.CheckerConfig(
      size=16, tints=4, channels=(4, 4), crop=8, look=(4, 4), width=8
  )
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda k: models.init(config, k), jax.random.key(0))
  return config, jax.tree.map(
      lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes
  )


@pytest.fixture(scope="module")
def check(made):
  return checker.Checker(*made)


def test_answers_are_of_the_predicates_that_were_asked(check, rng):
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  single = "a red circle smaller than a blue square"
  logits = check.logits(images, [PROMPT, single])
  assert np.isnan(logits).tolist() == [[False] * 2 + [True] * 2,
                                       [False] + [True] * 3]
  again = check.logits(images[[1, 0]], [PROMPT, single])
  assert again[1, 0] == pytest.approx(logits[0, 1], abs=1e-5)
  there, boxes = check.sight(images, [PROMPT, single])
  assert there.shape == (2, 2) and boxes.shape == (2, 2, 4)


def doubting(params, by):
  """The weights, less sure of each thing's being there by so much."""
  sight = params["look"]["sight"]
  sight = sight | {"bias": sight["bias"] - np.float32([by, 0, 0, 0, 0])}
  return params | {"look": params["look"] | {"sight": sight}}


def test_nothing_holds_more_surely_than_both_things_are_there(
    check, rng, monkeypatch
):
  plain = check.params | {"calibration": np.float32([1, 0])}
  monkeypatch.setattr(check, "params", doubting(plain, 8))
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  there, _ = check.sight(images, [PROMPT] * 2)
  both = there.prod(-1, keepdims=True)
  said = check(images, [PROMPT] * 2)[:, :2]
  assert (both < 0.1).all() and (said < both).all()


def test_what_is_taken_for_there_has_its_box(check, rng, monkeypatch):
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  sure, _ = check.sight(images, [PROMPT] * 2)
  middle = np.median(np.log(sure / (1 - sure)))
  monkeypatch.setattr(check, "params", doubting(check.params, middle))
  there, boxes = check.sight(images, [PROMPT] * 2)
  found = check.boxes(images, [PROMPT] * 2)
  labels = ["red circle", "blue square"]
  for sure, where, seen in zip(there, boxes, found, strict=True):
    assert list(seen) == [
        label for label, p in zip(labels, sure, strict=True) if p > 0.5
    ]
    for label, box in seen.items():
      np.testing.assert_array_equal(box, where[labels.index(label)])
  assert sum(map(len, found)) == 2


def test_a_stored_checker_comes_back(made, tmp_path):
  config, params = made
  path = tmp_path / "checker.safetensors"
  models.assets.save(path, params, {"checker": config.to_json()}, np.float32)
  again, weights = models.load(path)
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, weights, params)
  with pytest.raises(ValueError, match="are not those of a Checker"):
    models.load("reward.safetensors")
  former = json.dumps({"size": 16, "channels": [4, 4], "width": 8})
  models.assets.save(path, params, {"checker": former}, np.float32)
  with pytest.raises(ValueError, match="of a Checker that looked once"):
    models.load(path)


def test_a_picture_that_cannot_be_cut_into_patches_is_refused():
  with pytest.raises(ValueError, match="size is 10 and channels"):
    models.CheckerConfig(size=10)


@pytest.mark.parametrize("field", [{"crop": 10}, {"crop": 0}, {"look": ()}])
def test_a_look_that_does_not_halve_is_refused(field):
  with pytest.raises(ValueError, match="crop is .* and look"):
    models.CheckerConfig(**field)


def test_a_crop_is_what_a_bilinear_resize_makes_of_the_square(rng):
  x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
  whole = np.full((2, 2), 0.5, np.float32), np.full(2, 0.5, np.float32)
  np.testing.assert_allclose(models.crop(x, *whole, 8), x, atol=1e-6)
  # The square of columns 2 to 5 and rows 1 to 4, pixel by pixel.
  part = models.crop(
      x, np.float32([[0.5, 0.375]] * 2), np.full(2, 0.25, np.float32), 4
  )
  np.testing.assert_allclose(part, x[:, 1:5, 2:6], atol=1e-6)
  # Twice as large: the pixels in between are means of their neighbours.
  finer = models.crop(
      x, np.float32([[0.5, 0.375]] * 2), np.full(2, 0.25, np.float32), 8
  )
  between = 0.75 * x[:, 2, 3] + 0.25 * x[:, 2, 4]
  expected = 0.75 * between + 0.25 * (0.75 * x[:, 3, 3] + 0.25 * x[:, 3, 4])
  np.testing.assert_allclose(finer[:, 3, 3], expected, atol=1e-5)


def test_beyond_the_picture_there_is_nothing():
  x = np.ones((1, 8, 8, 1), np.float32)
  part = models.crop(x, np.float32([[0.0, 0.5]]), np.float32([0.25]), 4)
  np.testing.assert_allclose(part[0, :, :, 0], [[0, 0, 1, 1]] * 4, atol=1e-6)


def test_boxes_are_where_the_look_was(check, rng):
  """With nothing to add, a box is the usual one of the square of the look."""
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  things, _ = checker.asked([PROMPT] * 2)
  params = check.params | {"look": check.params["look"] | {
      "sight": jax.tree.map(np.zeros_like, check.params["look"]["sight"])
  }}
  pixels = images.astype(np.float32) / 127.5 - 1
  seen = models.apply(check.config, params, pixels, things)
  glance, boxes = np.asarray(seen.glance_boxes), np.asarray(seen.boxes)
  np.testing.assert_allclose(
      boxes[..., :2] + boxes[..., 2:], glance[..., :2] + glance[..., 2:],
      atol=1e-5,
  )
  half = np.clip((glance[..., 2:] - glance[..., :2]).max(-1) / 2, 0, 0.5)
  reach = np.maximum(1.6 * half, 0.1)
  sides = np.repeat(1.2 * reach[..., None], 2, -1)
  np.testing.assert_allclose(boxes[..., 2:] - boxes[..., :2], sides, atol=1e-5)
