"""Pixels of the embedded world."""

import numpy as np
import pytest

from spatialrl.scenes import graph as graphs
from spatialrl.scenes import layout, render

INDICATOR = {
    "circle": lambda x, y: x * x + y * y < 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 1,
    "triangle": lambda x, y: (y < 1) & (2 * abs(x) < y + 1),
    "cross": lambda x, y: (np.maximum(abs(x), abs(y)) < 1)
    & (np.minimum(abs(x), abs(y)) < 0.36),
}


@pytest.mark.parametrize(
    "shape, worst, typical",
    [("circle", 0.08, 0.03), ("square", 0.26, 0.08),
     ("triangle", 0.40, 0.09), ("cross", 0.30, 0.13)],
)
def test_coverage_is_close_to_supersampling(shape, worst, typical, rng):
  size, fine = 32, 16
  at = (np.arange(size * fine) + 0.5) / fine
  for _ in range(10):
    radius = rng.uniform(3.2, 8.6)
    x0, y0 = rng.uniform(radius, size - radius, 2)
    x, y = np.meshgrid((at - x0) / radius, (at - y0) / radius)
    exact = INDICATOR[shape](x, y).reshape(size, fine, size, fine)
    exact = exact.mean((1, 3))
    drawn = render.coverage(
        shape, np.array((x0, y0)) / size, radius / size, size
    )
    assert drawn.dtype == np.float32
    assert abs(drawn - exact).max() < worst  # at corners
    assert np.linalg.norm(drawn - exact) < typical * np.linalg.norm(exact)
    assert abs(drawn.sum() - exact.sum()) < 0.04 * exact.sum()


def test_the_smaller_thing_is_drawn_on_top():
  graph = graphs.SceneGraph(
      (graphs.Thing("red", "circle"), graphs.Thing("blue", "square")),
      (graphs.Relation(0, "inside", 1),),
  )
  places = layout.Layout(
      np.float32([[0.5, 0.5], [0.5, 0.5]]),
      np.float32([0.1, 0.25]),
      np.int32([0, 1]),
  )
  image = render.render(graph, places)
  assert image.shape == (32, 32, 3) and image.dtype == np.uint8
  red, blue, ground = (
      np.rint(255 * np.array(colour))
      for colour in (graphs.COLOURS["red"], graphs.COLOURS["blue"],
                     render.BACKGROUND)
  )
  np.testing.assert_array_equal(image[16, 16], red)
  np.testing.assert_array_equal(image[10, 10], blue)
  np.testing.assert_array_equal(image[1, 1], ground)


def test_bytes_survive_the_way_through_floats():
  values = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(
      render.to_uint8(render.to_float(values)), values
  )
  np.testing.assert_array_equal(
      render.to_uint8(np.array([-2.0, -1.0, 0.0, 1.0, 3.0])),
      [0, 0, 128, 255, 255],
  )


def test_an_unknown_shape_is_refused():
  with pytest.raises(ValueError, match="'star'"):
    render.coverage("star", (0.5, 0.5), 0.1, 32)
