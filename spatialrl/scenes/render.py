"""Pixels from layouts: flat shapes on a dark ground, anti-aliased."""

import numpy as np

from spatialrl.scenes import graph as graphs

BACKGROUND = (0.12, 0.12, 0.14)
_RGB = np.array(list(graphs.COLOURS.values()), np.float32)
_COLOUR_INDEX = {name: i for i, name in enumerate(graphs.COLOURS)}
_SHAPE_INDEX = {name: i for i, name in enumerate(graphs.SHAPES)}
_CROSS_ARM = 0.36  # half width of a cross's bars, as a share of its radius


def coverage(shape, centre, radius, size):
  """Share of every pixel that a shape covers.

  Coverage is clip(1/2 - d, 0, 1) with d the signed distance of the pixel's
  centre to the outline, in pixels: exact for straight edges along an axis.

  Args:
    shape: str, one of `graph.SHAPES`.
    centre: f32[..., 2], (x, y) as a share of the image's side.
    radius: f32[...], half the side of the bounding box, same unit.
    size: int, pixels a side.

  Returns:
    f32[..., size, size] in [0, 1].
  """
  pixel = np.arange(size, dtype=np.float32) + 0.5
  centre = np.asarray(centre, np.float32) * size
  radius = np.asarray(radius, np.float32)[..., None, None] * size
  dx = pixel[None, :] - centre[..., 0, None, None]
  dy = pixel[:, None] - centre[..., 1, None, None]
  return np.clip(0.5 - _distance(shape, dx, dy, radius), 0.0, 1.0)


def render(graph, layout, size=32):
  """Draws one scene.

  Args:
    graph: SceneGraph.
    layout: Layout of that graph; later copies are drawn over earlier ones.
    size: int, pixels a side.

  Returns:
    u8[size, size, 3].
  """
  image = np.broadcast_to(np.float32(BACKGROUND), (size, size, 3))
  # Larger things first, so that what is inside another one stays visible.
  for i in np.argsort(-layout.radius, kind="stable"):
    thing = graph.things[layout.thing[i]]
    alpha = coverage(thing.shape, layout.centre[i], layout.radius[i], size)
    colour = _RGB[_COLOUR_INDEX[thing.colour]]
    image = image + alpha[..., None] * (colour - image)
  return to_uint8(2 * image - 1)


def render_batch(graphs, layouts, size=32):
  """Draws many scenes at once, the same pixels as `render` draws.

  Args:
    graphs: SceneGraphs, B of them.
    layouts: Layouts of those graphs.
    size: int, pixels a side.

  Returns:
    u8[B, size, size, 3].
  """
  # The k-th largest thing of every scene is drawn in the k-th turn.
  turns = {}  # (turn, shape) -> [(scene, centre, radius, colour)]
  for scene, (graph, layout) in enumerate(zip(graphs, layouts, strict=True)):
    for turn, i in enumerate(np.argsort(-layout.radius, kind="stable")):
      thing = graph.things[layout.thing[i]]
      turns.setdefault((turn, thing.shape), []).append((
          scene, layout.centre[i], layout.radius[i],
          _COLOUR_INDEX[thing.colour],
      ))
  images = np.empty((len(graphs), size, size, 3), np.float32)
  images[:] = np.float32(BACKGROUND)
  for turn, shape in sorted(turns):
    scene, centre, radius, colour = zip(*turns[turn, shape], strict=True)
    alpha = coverage(shape, np.stack(centre), np.stack(radius), size)
    below = images[list(scene)]
    paint = _RGB[list(colour), None, None, :]
    images[list(scene)] = below + alpha[..., None] * (paint - below)
  return to_uint8(2 * images - 1)


def to_uint8(image):
  """f32[...] in [-1, 1] to u8[...], rounding and clipping."""
  return np.clip(np.rint((np.asarray(image) + 1) * 127.5), 0, 255).astype(
      np.uint8
  )


def to_float(image):
  """u8[...] to f32[...] in [-1, 1]."""
  return np.asarray(image, np.float32) / 127.5 - 1


def _distance(shape, dx, dy, radius):
  ax, ay = np.abs(dx), np.abs(dy)
  if shape == "circle":
    return np.sqrt(dx * dx + dy * dy) - radius
  if shape == "square":
    return np.maximum(ax, ay) - radius
  if shape == "cross":
    arm = _CROSS_ARM * radius
    upright = np.maximum(ax - arm, ay - radius)
    level = np.maximum(ax - radius, ay - arm)
    return np.minimum(upright, level)
  if shape == "triangle":
    # Apex at (0, -radius); the sides fall two units for one across.
    side = (2 * ax - (dy + radius)) / np.float32(np.sqrt(5))
    return np.maximum(side, dy - radius)
  raise ValueError(f"shape is {shape!r}; allowed are {list(graphs.SHAPES)}.")
