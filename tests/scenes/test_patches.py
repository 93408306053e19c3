"""Patches against a slow search."""

import numpy as np

from spatialrl.scenes import patches


def _flood(colour):
  """`patches.connected` pixel by pixel."""
  label = np.full(colour.shape, -1)
  for start in np.ndindex(colour.shape):
    if colour[start] < 0 or label[start] >= 0:
      continue
    stack, name = [start], np.ravel_multi_index(start, colour.shape)
    while stack:
      b, y, x = stack.pop()
      inside = 0 <= y < colour.shape[1] and 0 <= x < colour.shape[2]
      if not inside or colour[b, y, x] != colour[start]:
        continue
      if label[b, y, x] < 0:
        label[b, y, x] = name
        stack += [(b, y + 1, x), (b, y - 1, x), (b, y, x + 1), (b, y, x - 1)]
  return label


def test_connected_is_a_flood_fill(rng):
  for kinds in (1, 2, 3):
    colour = rng.integers(-1, kinds, (3, 17, 17))
    np.testing.assert_array_equal(patches.connected(colour), _flood(colour))
  maze = np.where(rng.random((1, 60, 60)) < 0.62, 0, -1)
  np.testing.assert_array_equal(patches.connected(maze), _flood(maze))
  spiral = np.full((1, 7, 7), -1)
  spiral[0, [0, 2, 4, 6]] = 0
  spiral[0, [1, 5], 6] = spiral[0, 3, 0] = 0
  np.testing.assert_array_equal(patches.connected(spiral), _flood(spiral))


def test_connected_of_nothing():
  nothing = np.full((2, 5, 5), -1)
  np.testing.assert_array_equal(patches.connected(nothing), nothing)


def test_drop_specks_keeps_what_is_large_and_thick():
  drawn = [
      "..00..0......",
      "..00..0000..0",
      "......0.....0",
      "0000........0",
      "0......0....0",
      "0.....000....",
      "0..0...0...0.",
      "0..00.....00.",
  ]
  colour = np.array([[0 if c == "0" else -1 for c in row] for row in drawn])
  kept, first = patches.drop_specks(patches.connected(colour[None]), 4)
  # A block, then a plus; lines, bends and three pixels are specks.
  np.testing.assert_array_equal(first, [2, 4 * 13 + 7])
  expected = np.full(colour.shape, -1)
  expected[:2, 2:4] = 0
  expected[5, 6:9] = expected[4, 7] = expected[6, 7] = 1
  np.testing.assert_array_equal(kept[0], expected)
  assert (patches.drop_specks(patches.connected(colour[None]), 6)[0] < 0).all()


def test_grow_spreads_along_the_axes_and_keeps_owners():
  owner = np.full((1, 7, 7), -1)
  owner[0, 3, 3], owner[0, 3, 4] = 5, 2
  y, x = np.mgrid[:7, :7]
  grown = patches.grow(owner, 2)[0]
  reach = np.minimum(abs(x - 3), abs(x - 4)) + abs(y - 3) <= 2
  np.testing.assert_array_equal(grown >= 0, reach)
  assert grown[3, 3] == 5 and grown[3, 4] == 2
  assert (grown[:, :3][reach[:, :3]] == 5).all()
  assert (grown[:, 5:][reach[:, 5:]] == 2).all()


def test_between_finds_the_nearest_on_both_sides():
  row = np.array([-1, 4, -1, -1, 4, 7, -1, 4, -1, 7])
  expected = np.array([-1, 4, 4, 4, 4, 7, -1, 4, -1, 7])
  patch = np.tile(row, (10, 1))[None]
  between = patches.between(patch, 2)[0]
  np.testing.assert_array_equal(between, np.tile(expected, (10, 1)))
  turned = patches.between(patch.swapaxes(1, 2), 1)[0]
  np.testing.assert_array_equal(turned, between.T)
