"""Cut-outs around regions, and shapes drawn into them.

Which shape, where and how large is searched in `fit`.
"""

import dataclasses
import functools

import numpy as np

from spatialrl.scenes.components import PALETTE
from spatialrl.scenes.render import coverage

_MARGIN = 2  # pixels around the widest shape of the region's area
_OUTSIDE = -2  # owner of what lies outside the picture


@dataclasses.dataclass(frozen=True)
class Windows:
  """Cut-outs of W x W pixels around n regions.

  Attributes:
    region: i64[n], index into the batch's regions.
    corner: f32[n, 2], (x, y) of the cut-out's corner in the picture, pixels.
    share: f32[n, W, W], 0 where the ground is, 1 where the region's colour is.
    across: f32[n, W, W], squared colour error that no share explains, in
      units of the squared distance of the two colours.
    length: f32[n], that squared distance, RGB in [0, 1].
    mine: bool[n, W, W], pixels of the region.
    seen: bool[n, W, W], pixels of the region or of its ground; others hide
      what the region does there.
  """

  region: np.ndarray
  corner: np.ndarray
  share: np.ndarray
  across: np.ndarray
  length: np.ndarray
  mine: np.ndarray
  seen: np.ndarray

  def take(self, chosen):
    """The windows where bool[n] is True."""
    if chosen.all():
      return self
    fields = dataclasses.fields(self)
    return Windows(*(getattr(self, field.name)[chosen] for field in fields))


def cut(images, found):
  """Cuts out all regions, in few different sizes.

  Args:
    images: f32[B, S, S, 3] in [0, 1].
    found: Regions of these images.

  Returns:
    list of Windows, each region in one of them.
  """
  # Of all shapes of one area, the triangle is the widest: 2 radius^2.
  half = np.ceil(np.sqrt(found.mass / 2) + _MARGIN)
  half = np.minimum(half + half % 2, images.shape[1]).astype(int)
  return [
      _cut(images, found, np.flatnonzero(half == reach), reach)
      for reach in np.unique(half)
  ]


def _cut(images, found, region, half):
  """Windows of 2 half pixels a side."""
  edge = ((0, 0), (half, half), (half, half))
  corner = np.rint(found.centroid[region]).astype(int) - half
  reach = np.arange(2 * half) + half
  at = (
      found.picture[region][:, None, None],
      (corner[:, 1, None] + reach)[:, :, None],
      (corner[:, 0, None] + reach)[:, None, :],
  )
  pixel = np.pad(images, (*edge, (0, 0)))[at]
  owner = np.pad(found.owner, edge, constant_values=_OUTSIDE)[at]
  fringe = np.pad(found.fringe, edge)[at]
  ground = PALETTE[found.ground[region]][:, None, None]
  line = PALETTE[found.colour[region]][:, None, None] - ground
  length = (line**2).sum(-1)
  offset = pixel - ground
  share = (offset * line).sum(-1) / length
  across = (offset**2).sum(-1) / length - share**2
  host = found.host[region][:, None, None]
  mine = (owner == region[:, None, None]) & ~fringe
  seen = mine | (owner == host) & (fringe | (host < 0))
  return Windows(
      region, corner.astype(np.float32), share, across, length[:, 0, 0], mine,
      seen,
  )


def draw(shape, guess, windows):
  """Draws one shape into every window.

  Args:
    shape: str, one of `graph.SHAPES`.
    guess: f32[n, 4], x, y and radius in pixels of the picture, softness s.
    windows: Windows.

  Returns:
    f32[n, W, W] coverage (1 - s) sharp + s blurred, with sharp the renderer's
    and blurred that under a Gaussian of one pixel, and f32[n, W, W], its
    slope along s.
  """
  width = windows.share.shape[1]
  centre, radius = guess[:, :2] - windows.corner, guess[:, 2]
  sharp = coverage(shape, centre / width, radius / width, width)
  slope = _blur(width) @ (sharp @ _blur(width)) - sharp
  return sharp + guess[:, 3, None, None] * slope, slope


@functools.cache
def _blur(width):
  """f32[W, W], Gaussian of one pixel along an axis; symmetric."""
  at = np.arange(width)
  kernel = np.exp(-((at[:, None] - at) ** 2) / 2) / np.sqrt(2 * np.pi)
  return kernel.astype(np.float32)
