"""Connected regions of one palette colour, many pictures at a time.

What shape a region has is decided in `fit`.
"""

import dataclasses

import numpy as np

from spatialrl.scenes import graph as graphs
from spatialrl.scenes import patches, render

PALETTE = np.array([*graphs.COLOURS.values(), render.BACKGROUND], np.float32)
GROUND = len(graphs.COLOURS)  # the background's row in PALETTE
_SMALL = 0.006  # share of the picture; the smallest shape covers 0.02
_LARGE = 0.07  # what may hold another one covers 0.12
_FAINT = 0.05  # what being far from pure costs a colour
_SOFT_EDGE = 2  # pixels around a region that may still be its edge


@dataclasses.dataclass(frozen=True)
class Regions:
  """The regions of a batch, n in all.

  Attributes:
    picture: i64[n], index into the batch.
    colour: i64[n], row of PALETTE.
    host: i64[n], the region that this one lies on, -1 for the background.
    ground: i64[n], row of PALETTE around it: the host's or the background's.
    centroid: f32[n, 2], (x, y) in pixels; regions that lie on it count in.
    mass: f32[n], covered area in pixels, likewise.
    owner: i64[B, S, S], region of every pixel, soft edges included, or -1.
    fringe: bool[B, S, S], pixels of a host close to what lies on it.
  """

  picture: np.ndarray
  colour: np.ndarray
  host: np.ndarray
  ground: np.ndarray
  centroid: np.ndarray
  mass: np.ndarray
  owner: np.ndarray
  fringe: np.ndarray


def regions(images, calm, level):
  """Finds the regions of a batch.

  Args:
    images: f32[B, S, S, 3] in [0, 1].
    calm: f32[B, S, S, 3], the same with less noise, to tell colours apart.
    level: share of a pixel that must be covered for it to start a region; a
      higher one separates what touches.

  Returns:
    Regions.
  """
  colour, share = nearest_colour(images, calm, GROUND)
  colour = np.where(share > level, colour, -1)
  colour = _look_inside(images, calm, colour, level)
  patch = patches.connected(colour)
  owner, first = patches.drop_specks(patch, _SMALL * images.shape[1] ** 2)
  area = np.bincount(owner[owner >= 0], minlength=len(first))
  owner = patches.grow(owner, _SOFT_EDGE)
  colour = colour.reshape(-1)[first]
  host = _hosts(owner, area, colour)
  ground = np.where(host < 0, GROUND, colour[host])
  upon = np.append(host, -1)[owner] >= 0
  fringe = ~upon & (patches.grow(np.where(upon, owner, -1), _SOFT_EDGE) >= 0)
  centroid, mass = _moments(images, owner, colour, ground, host)
  picture = first // images.shape[1] ** 2
  return Regions(picture, colour, host, ground, centroid, mass, owner, fringe)


def nearest_colour(images, calm, ground):
  """Reads pixels as mixtures of the ground and one other colour.

  Chooses the colour c of least |x - s c|^2 + 0.05 |(1 - s) c|^2, with x the
  calm pixel and c both seen from the ground, and s the best share in [0, 1].
  The second term parts colours in one line with the ground, as orange and
  yellow are from red.

  Args:
    images: f32[..., 3] in [0, 1].
    calm: f32[..., 3], the same with less noise.
    ground: row of PALETTE.

  Returns:
    i64[...], row of PALETTE, and f32[...], its share of the pixel.
  """
  line = PALETTE - PALETTE[ground]
  length = (line**2).sum(-1)
  unit = line / np.maximum(length, 1e-6)[:, None]
  along = (calm - PALETTE[ground]) @ unit.T
  share = np.clip(along, 0, 1)
  # |x - s c|^2 = |x|^2 - |c|^2 s (2 along - s)
  gain = share * (2 * along - share) - _FAINT * (1 - share) ** 2
  colour = np.where(length > 0, length * gain, -1).argmax(-1)
  return colour, ((images - PALETTE[ground]) * unit[colour]).sum(-1)


def _look_inside(images, calm, colour, level):
  """Reads pixels within a large patch as mixtures with its colour instead.

  Otherwise the blend of a small thing and the large one behind it passes for
  a third colour.

  Args:
    images, calm, level: see `regions`.
    colour: i64[B, S, S], row of PALETTE, -1 for the background.

  Returns:
    i64[B, S, S], the same read anew within large patches.
  """
  patch = patches.connected(colour)
  area = np.bincount(patch[patch >= 0], minlength=patch.size + 1)
  large = np.where(area[patch] > _LARGE * images.shape[1] ** 2, patch, -1)
  row, column = patches.between(large, 2), patches.between(large, 1)
  within = (row >= 0) & (row == column)
  host = np.where(within, colour.reshape(-1)[row], -1)
  colour = colour.copy()
  for ground in np.unique(host[within]):
    here = host == ground
    upon, share = nearest_colour(images[here], calm[here], ground)
    upon = np.where(upon == GROUND, -1, upon)
    colour[here] = np.where(share > level, upon, ground)
  return colour


def _hosts(owner, area, colour):
  """i64[n]: the region along most of a region's outline, or -1."""
  count = len(area) + 1
  touching = np.zeros(count**2, np.int64)
  for a, b in patches.adjacent(owner + 1):
    a, b = a[a != b], b[a != b]
    touching += np.bincount(a * count + b, minlength=count**2)
    touching += np.bincount(b * count + a, minlength=count**2)
  touching = touching.reshape(count, count)[1:]
  host = touching.argmax(1) - 1
  most = 2 * touching.max(1) > touching.sum(1)
  host = np.where(most & (colour[host] != colour), host, -1)
  # Two that fill a picture are each other's main neighbour.
  mutual = (host >= 0) & (host[host] == np.arange(len(host)))
  return np.where(mutual & (area >= area[host]), -1, host)


def _moments(images, owner, colour, ground, host):
  """f32[n, 2] centroids and f32[n] areas, in pixels."""
  picture, y, x = np.nonzero(owner >= 0)
  region = owner[picture, y, x]
  line = PALETTE[colour] - PALETTE[ground]
  line /= (line**2).sum(-1, keepdims=True)
  offset = images[picture, y, x] - PALETTE[ground[region]]
  share = np.clip((offset * line[region]).sum(-1), 0, 1)
  # A region also covers what lies on it.
  upon = host[region] >= 0
  region = np.concatenate([region, host[region[upon]]])
  share = np.concatenate([share, np.ones(upon.sum(), np.float32)])
  x, y = np.concatenate([x, x[upon]]) + 0.5, np.concatenate([y, y[upon]]) + 0.5
  mass, x, y = (
      np.bincount(region, weights, minlength=len(colour))
      for weights in (share, share * x, share * y)
  )
  centroid = np.stack([x, y], -1) / mass[:, None]
  return centroid.astype(np.float32), mass.astype(np.float32)
