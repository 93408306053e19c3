"""Many layouts at once, to look one up for a graph instead of searching it.

`layout.place` starts anew for every graph, which takes milliseconds where four
things shall not touch. Here a batch of pairs shares one pool. Positions that
keep things apart do so in whatever order the things take them, so each drawn
layout counts n! times.
"""

import dataclasses
import itertools

import numpy as np

from spatialrl.scenes import graph as graphs
from spatialrl.scenes import layout as layouts
from spatialrl.scenes.holds import clearance

_RADIUS = (0.11, 0.17)  # what `sample` draws scenes of directions from
_DRAWN = {2: 1024, 3: 4096, 4: 16384}  # about 170 remain of four things


@dataclasses.dataclass(frozen=True)
class Pool:
  """N layouts of n things, and what holds in each.

  Attributes:
    centre: f64[N, n, 2], (x, y) as a share of the image's side.
    radius: f64[N, n], same unit.
    true: dict from direction to bool[n, n, N]; [i, j, k] says that in layout
      k `i direction j` holds by the margin of `layout.MARGIN`.
  """

  centre: np.ndarray
  radius: np.ndarray
  true: dict


def draw(rng, things):
  """Draws a pool of layouts in which no two things touch.

  Args:
    rng: numpy Generator.
    things: int, n, from 2 to 4.

  Returns:
    Pool.
  """
  radius = rng.uniform(*_RADIUS, (_DRAWN[things], things))
  centre = layouts.random_centres(rng, radius)
  clear = layouts.separate(centre, radius)
  order = np.array(list(itertools.permutations(range(things))))
  centre = centre[clear][:, order].reshape(-1, things, 2)
  radius = radius[clear][:, order].reshape(-1, things)
  boxes = layouts.boxes_of(centre, radius).swapaxes(0, 1)
  true = {
      p: clearance(p, boxes[:, None], boxes[None]) > layouts.MARGIN[p]
      for p in graphs.DIRECTIONS
  }
  return Pool(centre, radius, true)


def choose(rng, pool, graph):
  """Picks a layout in which every relation of a graph holds.

  Args:
    rng: numpy Generator.
    pool: Pool of as many things as the graph has.
    graph: SceneGraph of single things without sizes, related by directions.

  Returns:
    Layout, each fitting one of the pool equally likely; None if none fits.
  """
  fits = np.logical_and.reduce(
      [pool.true[r.predicate][r.subject, r.object] for r in graph.relations]
  )
  fitting = np.flatnonzero(fits)
  if not len(fitting):
    return None
  k = fitting[rng.integers(len(fitting))]
  return layouts.Layout(
      pool.centre[k].astype(np.float32),
      pool.radius[k].astype(np.float32),
      np.arange(len(graph.things), dtype=np.int32),
  )
