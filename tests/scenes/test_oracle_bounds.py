"""The oracle on pictures that a generator might draw, good and bad."""

import types

import numpy as np
import pytest

from spatialrl.scenes import check, fit, oracle, render
from spatialrl.scenes import graph as graphs

SIDE = 32
NAMES = list(graphs.COLOURS)
PALETTE = np.array(list(graphs.COLOURS.values()), np.float32)
LABELS = [f"{c} {s}" for c in graphs.COLOURS for s in graphs.SHAPES]


def _paint(layers, size=SIDE):
  """u8[S, S, 3] of (colour name, shape, centre, radius), first one lowest."""
  image = np.broadcast_to(np.float32(render.BACKGROUND), (size, size, 3))
  for colour, shape, centre, radius in layers:
    share = render.coverage(shape, centre, radius, size)[..., None]
    image = image + share * (np.float32(graphs.COLOURS[colour]) - image)
  return _bytes(255 * image)


def _draw(shares, colours):
  """u8[N, S, S, 3] from f32[N, S, S] shares and f32[N, 3] colours in [0, 1]."""
  ground = np.float32(render.BACKGROUND)
  offset = colours[:, None, None] - ground
  return _bytes(255 * (ground + shares[..., None] * offset))


def _each_thing(rng):
  """f32[32, S, S] shares of one thing per label and f32[32, 3] colours."""
  shares = [
      render.coverage(
          label.split()[1], rng.uniform(0.3, 0.7, 2), rng.uniform(0.11, 0.17),
          SIDE,
      )
      for label in LABELS
  ]
  return np.stack(shares), np.repeat(PALETTE, len(graphs.SHAPES), 0)


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


def _labels(found):
  """Labels of what counts, sorted."""
  return sorted(d.label for d in found if d.score > check.THRESHOLD)


NO_SHAPES = {
    "ring": lambda x, y: (np.hypot(x, y) < 1) & (np.hypot(x, y) > 0.5),
    "half a circle": lambda x, y: (np.hypot(x, y) < 1) & (y < 0),
    "three quarters": lambda x, y: (np.hypot(x, y) < 1) & ~((x > 0) & (y < 0)),
    "ellipse": lambda x, y: x**2 + (1.6 * y) ** 2 < 1,
    "bar": lambda x, y: (abs(x) < 1) & (abs(y) < 0.7),
    "corner": lambda x, y: (np.maximum(abs(x), abs(y)) < 1)
    & ((x < -0.2) | (y > 0.2)),
    "upside-down triangle": lambda x, y: (y > -1) & (2 * abs(x) < 1 - y),
    "tilted cross": lambda x, y: (abs(abs(x) - abs(y)) < 0.5)
    & (abs(x) + abs(y) < 1.4),
    "two overlapping squares": lambda x, y: (
        np.maximum(abs(x + 0.6), abs(y + 0.5)) < 0.8
    ) | (np.maximum(abs(x - 0.6), abs(y - 0.5)) < 0.7),
}


@pytest.mark.parametrize("name", NO_SHAPES)
def test_what_is_no_shape_does_not_count(name, rng):
  fine = (np.arange(SIDE * 8) + 0.5) / 8
  shares = []
  for _ in PALETTE:
    radius = rng.uniform(4, 6)
    x0, y0 = rng.uniform(10, 22, 2)
    x, y = (fine - x0) / radius, (fine[:, None] - y0) / radius
    drawn = NO_SHAPES[name](*np.broadcast_arrays(x, y))
    shares.append(drawn.reshape(SIDE, 8, SIDE, 8).mean((1, 3)))
  images = _draw(np.stack(shares), PALETTE)
  for found in oracle.detect(images) + oracle.detect(_noise(rng, images, 12)):
    assert not _labels(found)


def test_faint_shapes_do_not_count(rng):
  shares, colours = _each_thing(rng)
  for found in oracle.detect(_draw(0.6 * shares, colours)):
    assert not _labels(found)


def test_a_doubtful_shape_is_not_lost_on_the_second_look(rng):
  shares, colours = _each_thing(rng)
  read = oracle.detect(_draw(0.7 * shares, colours))
  assert [found[0].label for found in read] == LABELS
  assert np.mean([found[0].score < 0.5 for found in read]) > 0.5


def test_slightly_wrong_colours_and_soft_edges_count(rng):
  shares, colours = _each_thing(rng)
  wrong = rng.normal(size=colours.shape)
  wrong *= 0.12 / np.linalg.norm(wrong, axis=-1, keepdims=True)
  images = _blur(_draw(shares, np.clip(colours + wrong, 0, 1)), 0.7)
  for label, found in zip(LABELS, oracle.detect(images), strict=True):
    assert _labels(found) == [label]


@pytest.mark.parametrize(
    "colour", [(0.5, 0.2, 0.9), (0.55, 0.3, 0.1), (1.0, 0.6, 0.75)]
)
def test_colours_between_those_of_the_palette_do_not_count(colour, rng):
  shares, _ = _each_thing(rng)
  colours = np.broadcast_to(np.float32(colour), (len(shares), 3))
  for found in oracle.detect(_draw(shares, colours)):
    assert not _labels(found)


@pytest.mark.parametrize("inner", NAMES)
def test_a_blend_with_what_lies_behind_is_no_third_colour(inner):
  hosts = [name for name in NAMES if name != inner]
  images = [
      _paint([
          (host, "square", (0.5, 0.47), 0.25),
          (inner, "triangle", (0.52, 0.45), 0.105),
      ])
      for host in hosts
  ]
  for host, found in zip(
      hosts, oracle.detect(_blur(np.stack(images))), strict=True
  ):
    assert _labels(found) == sorted([f"{host} square", f"{inner} triangle"])


def test_an_edge_of_the_right_blend_is_no_third_colour():
  for row in np.linspace(0, 1, 8, endpoint=False) / SIDE:
    images = [
        _paint([
            ("red", "square", (0.5, 0.5), 0.26),
            ("yellow", "square", (0.5 + column, 0.48 + row), 0.104),
        ])
        for column in np.linspace(0, 1, 8, endpoint=False) / SIDE
    ]
    for found in oracle.detect(np.stack(images)):
      assert _labels(found) == ["red square", "yellow square"]
      assert min(d.score for d in found) > 0.95


@pytest.mark.parametrize("inner, host", [("red", "orange"), ("orange", "red")])
def test_close_colours_inside_each_other_survive_noise(inner, host, rng):
  images = [
      _paint([
          (host, "square", rng.uniform(0.45, 0.55, 2), 0.25),
          (inner, "cross", rng.uniform(0.45, 0.55, 2), 0.11),
      ])
      for _ in range(80)
  ]
  expected = sorted([f"{host} square", f"{inner} cross"])
  read = oracle.detect(_noise(rng, np.stack(images)))
  assert np.mean([_labels(found) == expected for found in read]) > 0.95


def test_a_thing_inside_may_hide_half_of_its_host():
  layers = [
      ("cyan", "circle", (0.5, 0.5), 0.26), ("red", "circle", (0.52, 0.5), 0.19)
  ]
  found, = oracle.detect(_paint(layers)[None])
  assert _labels(found) == ["cyan circle", "red circle"]
  for d, (_, _, centre, radius) in zip(found, layers[::-1], strict=True):
    box = (centre[0] - radius, centre[1] - radius,
           centre[0] + radius, centre[1] + radius)
    np.testing.assert_allclose(d.box, box, atol=0.01)


def test_the_ground_may_have_any_colour_of_the_palette():
  layers = [
      ("blue", "square", (0.5, 0.5), 0.6), ("red", "circle", (0.4, 0.6), 0.15)
  ]
  found, = oracle.detect(_paint(layers)[None])
  assert _labels(found) == ["red circle"]
  np.testing.assert_allclose(found[0].box, (0.25, 0.45, 0.55, 0.75), atol=0.01)


def test_what_is_all_but_hidden_does_not_count():
  layers = [
      ("cyan", "square", (0.5, 0.5), 0.25), ("red", "square", (0.5, 0.5), 0.22)
  ]
  found, = oracle.detect(_paint(layers, 64)[None])
  assert _labels(found) == ["red square"]


def test_things_may_overlap(rng):
  for _ in range(10):
    x, y = rng.uniform(0.3, 0.35), rng.uniform(0.4, 0.6)
    layers = [
        ("blue", "circle", (x, y), 0.19),
        ("yellow", "square", (x + 0.27, y + 0.03), 0.13),
    ]
    found, = oracle.detect(_paint(layers)[None])
    assert _labels(found) == ["blue circle", "yellow square"]
    boxes = {d.label: d.box for d in found}
    for colour, shape, centre, radius in layers:
      x1, y1, x2, y2 = boxes[f"{colour} {shape}"]
      np.testing.assert_allclose((x1 + x2, y1 + y2), np.multiply(centre, 2),
                                 atol=0.02)
      np.testing.assert_allclose(x2 - x1, 2 * radius, atol=0.02)


def test_a_region_within_one_of_its_own_colour_is_no_ground():
  layers = [
      ("red", "square", (0.5, 0.5), 0.35),
      ("blue", "square", (0.5, 0.5), 0.20),
      ("red", "square", (0.5, 0.5), 0.17),
  ]
  found, = oracle.detect(_paint(layers)[None])
  assert "red square" in [d.label for d in found]


@pytest.mark.parametrize("along", [0, 1])
def test_blurred_neighbours_of_one_colour_are_told_apart(along, rng):
  images = []
  for _ in range(40):
    near = rng.uniform((0.2, 0.3), (0.25, 0.7))
    far = near + np.array((0.12 + 0.13 + 0.046, 0.0))
    images.append(_paint([
        ("blue", "square", np.roll(near, along), 0.12),
        ("blue", "square", np.roll(far, along), 0.13),
    ]))
  read = oracle.detect(_noise(rng, _blur(np.stack(images))))
  assert np.mean([_labels(d) == ["blue square"] * 2 for d in read]) > 0.9


def test_blurred_neighbours_of_two_colours_keep_to_themselves(rng):
  for first in NAMES:
    layers = [
        [
            (first, "square", (0.3, 0.5), 0.12),
            (second, "square", (0.3 + 0.24 + 0.046, 0.5), 0.12),
        ]
        for second in NAMES
        if second != first
    ]
    images = _blur(np.stack([_paint(pair) for pair in layers]))
    for pair, found in zip(layers, oracle.detect(images), strict=True):
      assert _labels(found) == sorted(f"{c} square" for c, *_ in pair)
      assert min(d.score for d in found) > 0.7


def test_one_softness_is_asked_of_the_whole_picture():
  cross = ("blue", "cross", (0.75, 0.75), 0.13)
  alone = _paint([cross])
  mixed = _paint([("white", "square", (0.3, 0.3), 0.2), cross])
  mixed[:18] = _blur(mixed[None])[0, :18]
  score, lower = (
      next(d.score for d in found if d.label == "blue cross")
      for found in oracle.detect(np.stack([alone, mixed]))
  )
  assert lower < score - 0.1


def test_softness_is_averaged_over_a_picture_by_area_and_error():
  found = types.SimpleNamespace(
      picture=np.array([0, 0, 2, 3, 3]),
      mass=np.float32([10, 30, 5, 10, 10]),
  )
  guess = np.zeros((2, 5, 4), np.float32)
  guess[0, :, 3] = 0.2, 9, 0.7, 0.0, 9
  guess[1, :, 3] = 9, 1.0, 9, 9, 1.0
  error = np.float32([[0, 2, 1, 0.1, 5], [2, 0, 4, 2, 0.5]])
  softness = fit._picture_softness(guess, error, found)
  # Weights 10 : 30, then 1 / (0.01 + 0.01) : 1 / (0.05 + 0.01).
  np.testing.assert_allclose(softness, (0.8, 0.8, 0.7, 0.25, 0.25), rtol=1e-5)
