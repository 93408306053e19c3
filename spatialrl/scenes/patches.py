"""Patches of equal labels on grids of pixels, many pictures at a time.

Labels are i64[B, S, S], -1 where there is none. What the labels mean is known
in `components`.
"""

import numpy as np


def connected(colour):
  """Labels the 4-connected patches of each colour.

  Union-find over all pictures at once: the roots of neighbours are hooked
  onto the lower one until all neighbours agree.

  Args:
    colour: i64[B, S, S], -1 for none.

  Returns:
    i64[B, S, S], flat index of the patch's first pixel, -1 for none.
  """
  pixel = np.arange(colour.size).reshape(colour.shape)
  pairs = [
      np.stack(ends)[:, (one == other) & (one >= 0)]
      for ends, (one, other) in zip(
          adjacent(pixel), adjacent(colour), strict=True
      )
  ]
  a, b = np.concatenate(pairs, 1)
  root = pixel.reshape(-1)
  while True:
    high, low = np.maximum(root[a], root[b]), np.minimum(root[a], root[b])
    differ = high != low
    if not differ.any():
      return np.where(colour >= 0, root.reshape(colour.shape), -1)
    a, b = a[differ], b[differ]
    root[high[differ]] = low[differ]
    while (root[root] != root).any():
      root = root[root]


def drop_specks(patch, least):
  """Keeps patches of some area that hold a block of 2 x 2 pixels or a plus.

  The edge between two colours can look like a third one, but it is a line.

  Args:
    patch: i64[B, S, S] of `connected`.
    least: pixels.

  Returns:
    i64[B, S, S], patches renumbered from 0 in order of their first pixel, -1
    elsewhere, and i64[n], flat index of that pixel.
  """
  block, plus = patch[:, 1:, 1:], patch[:, 1:-1, 1:-1]
  corners = patch[:, :-1, 1:], patch[:, 1:, :-1], patch[:, :-1, :-1]
  arms = (
      patch[:, :-2, 1:-1], patch[:, 2:, 1:-1],
      patch[:, 1:-1, :-2], patch[:, 1:-1, 2:],
  )
  thick = np.zeros(patch.size, bool)
  for centre, around in ((block, corners), (plus, arms)):
    same = np.logical_and.reduce([side == centre for side in around])
    thick[centre[same & (centre >= 0)]] = True
  area = np.bincount(patch[patch >= 0], minlength=patch.size)
  first = np.flatnonzero(thick & (area >= least))
  number = np.full(patch.size + 1, -1)  # the last one serves patch -1
  number[first] = np.arange(len(first))
  return number[patch], first


def grow(owner, steps):
  """Lets patches spread into pixels that have no label.

  Args:
    owner: i64[B, S, S].
    steps: pixels, along the axes.

  Returns:
    i64[B, S, S].
  """
  for _ in range(steps):
    grown = owner.copy()
    for (a, b), (to_a, to_b) in zip(
        adjacent(owner), adjacent(grown), strict=True
    ):
      np.copyto(to_a, b, where=(to_a < 0) & (b >= 0))
      np.copyto(to_b, a, where=(to_b < 0) & (a >= 0))
    owner = grown
  return owner


def between(patch, axis):
  """Tells which patch lies on both sides of a pixel, or covers it.

  Args:
    patch: i64[B, S, S].
    axis: 1 for above and below, 2 for left and right.

  Returns:
    i64[B, S, S], -1 where the nearest ones differ or one is missing.
  """
  last = patch.shape[axis] - 1
  place = np.arange(last + 1).reshape((-1, 1) if axis == 1 else -1)
  before = np.maximum.accumulate(np.where(patch >= 0, place, 0), axis)
  after = np.flip(np.where(patch >= 0, place, last), axis)
  after = np.flip(np.minimum.accumulate(after, axis), axis)
  before = np.take_along_axis(patch, before, axis)
  after = np.take_along_axis(patch, after, axis)
  return np.where(before == after, before, -1)


def adjacent(values):
  """Views (one, other) of all horizontal, then vertical neighbours."""
  return (
      (values[:, :, :-1], values[:, :, 1:]),
      (values[:, :-1], values[:, 1:]),
  )
