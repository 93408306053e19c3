"""The shape, place and size that explain a coloured region best."""

import dataclasses

import numpy as np

from spatialrl.scenes import graph as graphs
from spatialrl.scenes import windows as views
from spatialrl.scenes.render import coverage

_RADII = 0.05, 0.45  # allowed, as a share of the picture's side
_SOFTEST = 1.5  # 0 is the renderer's outline, 1 that blurred by one pixel
_FREE_STEPS, _FINAL_STEPS, _FINALISTS = 2, 3, 2
_LONGEST_STEP = 1.5  # pixels
_DAMPING = 0.05


@dataclasses.dataclass(frozen=True)
class Fits:
  """The best shape of each of n regions.

  Attributes:
    shape: i64[n], index into `graph.SHAPES`.
    centre: f32[n, 2], (x, y) in pixels.
    radius: f32[n], half the side of the bounding box, in pixels.
    unexplained: f32[n], squared RGB error beyond the grain, as a share of
      what drawing the shape changes; 0 is a perfect drawing.
    visible: f32[n], share of the shape that no other region hides.
    area: f32[n], visible area in pixels.
  """

  shape: np.ndarray
  centre: np.ndarray
  radius: np.ndarray
  unexplained: np.ndarray
  visible: np.ndarray
  area: np.ndarray


def fit(images, grain, found):
  """Fits all shapes to all regions and keeps the best of each.

  With ground g and region colour c, drawing coverage T gives g + T (c - g).
  The squared error against the pixels that are not another region's is
  minimised over centre, radius and softness of the outline by Gauss-Newton
  steps from the region's moments. The softness belongs to the picture, not to
  the thing: after some steps it is averaged over the picture, and only the
  best two shapes of each region are fitted further.

  Args:
    images: f32[B, S, S, 3] in [0, 1].
    grain: f32[B], squared RGB noise of a pixel.
    found: Regions of these images.

  Returns:
    Fits.
  """
  groups = views.cut(images, found)
  guess = _starts(found)
  error = np.zeros(guess.shape[:2], np.float32)
  _descend(guess, error, groups, error == 0, images.shape[1], free=True)
  guess[..., 3] = _picture_softness(guess, error, found)
  finalist = error.argsort(0).argsort(0) < _FINALISTS
  error[~finalist] = np.inf
  _descend(guess, error, groups, finalist, images.shape[1], free=False)
  shape = error.argmin(0)
  best = guess[shape, np.arange(len(shape))]
  quality = np.zeros((3, len(shape)), np.float32)
  for k, windows in _of_each_shape(groups, shape == _EVERY):
    rows = windows.region
    noise = grain[found.picture[rows]] / windows.length
    quality[:, rows] = _judge(graphs.SHAPES[k], best[rows], windows, noise)
  return Fits(shape, best[:, :2], best[:, 2], *quality)


def _starts(found):
  """f32[4, n, 4]: x, y, radius in pixels and softness from the moments."""
  guess = np.full((len(graphs.SHAPES), len(found.mass), 4), 0.5, np.float32)
  for k, shape in enumerate(graphs.SHAPES):
    area, below = _UNIT[shape]
    guess[k, :, 2] = np.sqrt(found.mass / area)
    guess[k, :, :2] = found.centroid
    guess[k, :, 1] -= below * guess[k, :, 2]
  return guess


def _picture_softness(guess, error, found):
  """f32[n]: mean softness of the best fits in each region's picture.

  Weighted by area over mean squared error, so that what is no shape at all
  has little say.
  """
  best = error.argmin(0), np.arange(error.shape[1])
  weight = found.mass / (error[best] / found.mass + 0.01)
  total = np.bincount(found.picture, weight * guess[*best, 3])
  weight = np.bincount(found.picture, weight)
  mean = total / np.maximum(weight, 1e-6)
  return mean[found.picture].astype(np.float32)


def _descend(guess, error, groups, wanted, side, *, free):
  """Improves the wanted bool[4, n] guesses in place and notes their errors."""
  for k, windows in _of_each_shape(groups, wanted):
    shape, rows = graphs.SHAPES[k], windows.region
    moving = guess[k, rows]
    for _ in range(_FREE_STEPS if free else _FINAL_STEPS):
      moving = _step(shape, moving, windows, side, free)
    drawn, _ = views.draw(shape, moving, windows)
    missing = (windows.share - drawn) * windows.seen
    guess[k, rows] = moving
    error[k, rows] = (missing**2).sum((1, 2))


def _of_each_shape(groups, wanted):
  """Yields (shape index, Windows) for the wanted bool[4, n]."""
  for windows in groups:
    for k in range(len(graphs.SHAPES)):
      chosen = wanted[k, windows.region]
      if chosen.any():
        yield k, windows.take(chosen)


def _step(shape, guess, windows, side, free):
  """f32[n, 4]: one damped Gauss-Newton step, along softness only if free."""
  drawn, along_softness = views.draw(shape, guess, windows)
  width = drawn.shape[1]
  at = np.arange(width, dtype=np.float32) + 0.5
  from_x = at - (guess[:, :1] - windows.corner[:, :1])
  from_y = at - (guess[:, 1:2] - windows.corner[:, 1:])
  slopes = np.zeros((len(guess), 3 + free, width, width), np.float32)
  # Moving a shape by a pixel moves its values by a pixel.
  slopes[:, 0, :, 1:-1] = (drawn[:, :, :-2] - drawn[:, :, 2:]) / 2
  slopes[:, 1, 1:-1] = (drawn[:, :-2] - drawn[:, 2:]) / 2
  slopes[:, :2] *= windows.seen[:, None]
  # Growing moves them away from the centre.
  slopes[:, 2] = slopes[:, 0] * from_x[:, None, :]
  slopes[:, 2] += slopes[:, 1] * from_y[:, :, None]
  slopes[:, 2] /= guess[:, 2, None, None]
  if free:
    slopes[:, 3] = along_softness * windows.seen
  slopes = slopes.reshape(*slopes.shape[:2], width**2)
  missing = (windows.share - drawn).reshape(len(guess), width**2, 1)
  normal = slopes @ slopes.swapaxes(1, 2)
  normal += _DAMPING * np.eye(3 + free, dtype=np.float32)
  move = np.linalg.solve(normal, slopes @ missing)[..., 0]
  guess = guess.copy()
  guess[:, : 3 + free] += np.clip(move, -_LONGEST_STEP, _LONGEST_STEP)
  guess[:, 2] = np.clip(guess[:, 2], _RADII[0] * side, _RADII[1] * side)
  guess[:, 3] = np.clip(guess[:, 3], 0, _SOFTEST)
  return guess


def _judge(shape, guess, windows, noise):
  """f32[3, n]: unexplained, visible and area of `Fits`.

  Args:
    shape: str.
    guess: f32[n, 4].
    windows: Windows.
    noise: f32[n], squared error expected of a pixel.
  """
  drawn, _ = views.draw(shape, guess, windows)
  counted = windows.mine | (windows.seen & (drawn > 0.02))
  error = (windows.share - drawn) ** 2 + windows.across
  error = ((error - noise[:, None, None]) * counted).sum((1, 2))
  energy = (drawn**2 * windows.seen).sum((1, 2))
  area = (drawn * windows.seen).sum((1, 2))
  whole = _UNIT[shape][0] * guess[:, 2] ** 2
  unexplained = np.maximum(error, 0) / np.maximum(energy, 1)
  return unexplained, np.minimum(area / whole, 1), area


def _unit(shape):
  """Area, and depth of the centroid below the centre, at radius 1."""
  drawn = coverage(shape, (0.5, 0.5), 0.25, 256)
  y = (np.arange(256) + 0.5) / 64 - 2
  return drawn.sum() / 64**2, drawn.sum(1) @ y / drawn.sum()


_UNIT = {shape: _unit(shape) for shape in graphs.SHAPES}
_EVERY = np.arange(len(graphs.SHAPES))[:, None]
