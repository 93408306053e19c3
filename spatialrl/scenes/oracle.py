"""The measuring stick: reads pixels only and says what is where.

It knows the palette, the background and the shapes of the renderer, and
nothing of prompts, graphs or layouts.
"""

import numpy as np

from spatialrl.scenes import components, render
from spatialrl.scenes import fit as fits
from spatialrl.scenes import graph as graphs
from spatialrl.scenes.detection import Detection

_STRICTNESS = 10.0  # a tenth unexplained is not that shape
_HIDDEN = 3.0  # up to two thirds of a shape may be hidden at no loss
_LEVELS = (0.5, 0.72)  # a pixel's coverage; the second parts what touches
_GOOD = 0.5  # a score below this asks for the next level
_NOISY = 6 * 0.03**2  # squared step between neighbours, three channels
_CHUNK = 64  # pictures at a time, so that all of it stays in the cache
_LABELS = [f"{c} {s}" for c in graphs.COLOURS for s in graphs.SHAPES]


def detect(images):
  """Finds the coloured shapes in pictures.

  Regions of one colour (`components`) get the shape that explains them best
  (`fit`). The score is

    clip(1 - 10 u, 0, 1) min(3 v, 1)

  with u the squared RGB error of that shape, beyond the picture's noise, as a
  share of what drawing it changes, and v the share of the shape in sight. A
  faint, ragged or half-formed blob, or one of a colour between two of the
  palette, leaves much unexplained; a soft outline (up to a blur of about a
  pixel) does not.

  Args:
    images: u8[B, S, S, 3], or f32[B, S, S, 3] in [-1, 1].

  Returns:
    list per picture of lists of Detection, highest score first, with labels
    like "red circle" and boxes as a share of the picture's side. All scores
    above 0 are listed; those under `check.THRESHOLD` are not to be counted.

  Raises:
    ValueError: if images are of another shape or type, or not finite.
  """
  images = _checked(images)
  found = []
  for start in range(0, len(images), _CHUNK):
    found += _detect(images[start : start + _CHUNK])
  return found


def _checked(images):
  """f32[B, S, S, 3] in [0, 1]."""
  images = np.asarray(images)
  if images.ndim != 4 or images.shape[3] != 3:
    raise ValueError(
        f"images have shape {images.shape}; [B, S, S, 3] is needed."
    )
  if images.shape[1] != images.shape[2]:
    raise ValueError(f"images have shape {images.shape}; they must be square.")
  if images.dtype == np.uint8:
    images = render.to_float(images)
  if images.dtype != np.float32:
    raise ValueError(f"images are {images.dtype}; allowed are uint8, float32.")
  if not np.isfinite(images).all():
    raise ValueError("images hold values that are not finite.")
  return np.clip(images / 2 + 0.5, 0, 1)


def _detect(images):
  """`detect` for f32[B, S, S, 3] in [0, 1]; keeps the best level of each."""
  best = [[] for _ in images]
  explained = np.zeros(len(images))
  grain, calm = _denoised(images)
  doubtful = np.arange(len(images))
  for level in _LEVELS:
    if not len(doubtful):
      break
    pictures = images[doubtful]
    found = components.regions(pictures, calm[doubtful], level)
    shapes = fits.fit(pictures, grain[doubtful], found)
    score = np.clip(1 - _STRICTNESS * shapes.unexplained, 0, 1)
    score *= np.minimum(_HIDDEN * shapes.visible, 1)
    count = len(doubtful)
    area = np.bincount(found.picture, score * shapes.area, count)
    bad = np.bincount(found.picture, score < _GOOD, count) > 0
    listed = _listed(found, shapes, score, count, images.shape[1])
    for k in np.flatnonzero(area > explained[doubtful]):
      best[doubtful[k]] = listed[k]
    explained[doubtful] = np.maximum(explained[doubtful], area)
    doubtful = doubtful[bad]
  return best


def _denoised(images):
  """f32[B] squared RGB noise of a pixel, and images with less of it.

  Most neighbouring pixels of a picture should be equal, so the median step
  tells the noise; 2.366 is the median of a chi-squared of three channels.
  """
  step = ((images[:, :, 1:] - images[:, :, :-1]) ** 2).sum(-1)
  step = np.median(step.reshape(len(images), -1), 1)
  noisy = step > _NOISY
  calm = images.copy()
  padded = np.pad(images[noisy], ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
  rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
  calm[noisy] = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16
  return step * (3 / 2 / 2.366), calm


def _listed(found, shapes, score, count, side):
  """Lists of Detection for each of `count` pictures."""
  reach = shapes.radius[:, None]
  boxes = np.concatenate([shapes.centre - reach, shapes.centre + reach], -1)
  boxes = np.clip(boxes / side, 0, 1).astype(np.float32)
  label = found.colour * len(graphs.SHAPES) + shapes.shape
  listed = [[] for _ in range(count)]
  for k in np.argsort(-score, kind="stable"):
    if score[k] > 0:
      listed[found.picture[k]].append(
          Detection(_LABELS[label[k]], boxes[k], float(score[k]))
      )
  return listed
