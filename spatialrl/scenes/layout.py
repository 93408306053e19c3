"""Positions: layouts that satisfy a scene graph, by rejection sampling."""

import dataclasses

import numpy as np

from spatialrl.scenes import graph as graphs
from spatialrl.scenes.holds import clearance

# A sampled relation holds by this much, so that no decision hangs on a pixel.
MARGIN = {
    **dict.fromkeys(graphs.DIRECTIONS, 0.08),
    **dict.fromkeys(("larger than", "smaller than"), 0.15),
    **dict.fromkeys(("near", "far from"), 0.05),
    "inside": 0.015,
}
_GAP = 0.045  # between two boxes that are not one inside the other
_RADIUS = {None: (0.11, 0.17), "small": (0.10, 0.12), "large": (0.17, 0.20)}
_HOST_RADIUS, _INNER_RADIUS = (0.23, 0.27), (0.10, 0.11)
_COMPARED_RADIUS = (0.10, 0.20)
_HOSTS = ("square", "circle")  # the shapes that can hold another one


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where every copy of every thing is.

  Attributes:
    centre: f32[M, 2], (x, y) as a share of the image's side, y down.
    radius: f32[M], half the side of the bounding box, same unit.
    thing: i32[M], index into the graph's things.
  """

  centre: np.ndarray
  radius: np.ndarray
  thing: np.ndarray

  @property
  def boxes(self):
    """f32[M, 4], (x1, y1, x2, y2) as a share of the image's side."""
    reach = self.radius[:, None]
    return np.concatenate([self.centre - reach, self.centre + reach], -1)


def place(rng, graph, *, candidates=512, rounds=40):
  """Draws a layout in which every relation of a graph holds with a margin.

  Args:
    rng: numpy Generator.
    graph: SceneGraph.
    candidates: int, layouts tried at once.
    rounds: int, how often.

  Returns:
    Layout, or None when none of the candidates fits (a graph may have no
    layout at all: a left of b, b left of c, c left of a).
  """
  copies = [i for i, t in enumerate(graph.things) for _ in range(t.count)]
  thing = np.array(copies, np.int32)
  inside = {
      (r.subject, r.object) for r in graph.relations if r.predicate == "inside"
  }
  if any(graph.things[host].shape not in _HOSTS for _, host in inside):
    return None
  low, high = np.array([_radius_range(graph, i, inside) for i in copies]).T
  for _ in range(rounds):
    radius = rng.uniform(low, high, (candidates, len(copies)))
    centre = random_centres(rng, radius)
    for inner, host in inside:
      i, j = copies.index(inner), copies.index(host)
      slack = 0.62 * radius[:, j] - radius[:, i]
      shift = rng.uniform(-1, 1, (candidates, 2)) * slack[:, None]
      centre[:, i] = centre[:, j] + shift
    exempt = {(copies.index(a), copies.index(b)) for a, b in inside}
    fits = separate(centre, radius, exempt)
    boxes = boxes_of(centre, radius)
    for relation in graph.relations:
      a = boxes[:, copies.index(relation.subject)]
      b = boxes[:, copies.index(relation.object)]
      margin = MARGIN[relation.predicate]
      fits &= clearance(relation.predicate, a, b) > margin
    if fits.any():
      k = int(np.argmax(fits))
      return Layout(
          centre[k].astype(np.float32), radius[k].astype(np.float32), thing
      )
  return None


def random_centres(rng, radius):
  """f64[..., M, 2] centres that keep every box inside the picture."""
  room = 1 - 2 * radius[..., None]
  return radius[..., None] + rng.uniform(size=(*radius.shape, 2)) * room


def boxes_of(centre, radius):
  """f[..., M, 4] from f[..., M, 2] and f[..., M]."""
  reach = radius[..., None]
  return np.concatenate([centre - reach, centre + reach], -1)


def coverage(boxes, side):
  """How much of each cell of a grid the boxes cover.

  Args:
    boxes: f[n, 4], (x1, y1, x2, y2) as shares of the image's side.
    side: cells a side.

  Returns:
    f32[side, side], the largest share of a cell that one box covers; zeros
    for no boxes.
  """
  edges = np.arange(side + 1) / side
  covered = np.zeros((side, side), np.float32)
  for box in boxes:
    x, y = (
        np.clip(
            np.minimum(edges[1:], box[axis + 2])
            - np.maximum(edges[:-1], box[axis]),
            0, None,
        ) * side
        for axis in (0, 1)
    )
    covered = np.maximum(covered, y[:, None] * x[None])
  return covered.astype(np.float32)


def separate(centre, radius, exempt=()):
  """bool[N]: no two boxes of a layout come closer than a gap.

  Args:
    centre: f[N, M, 2].
    radius: f[N, M].
    exempt: pairs of copies (i, j) that may overlap.
  """
  clear = np.ones(len(centre), bool)
  copies = radius.shape[1]
  for i in range(copies):
    for j in range(i + 1, copies):
      if (i, j) in exempt or (j, i) in exempt:
        continue
      apart = np.abs(centre[:, i] - centre[:, j]).max(-1)
      clear &= apart > radius[:, i] + radius[:, j] + _GAP
  return clear


def _radius_range(graph, index, inside):
  thing = graph.things[index]
  if thing.size:
    return _RADIUS[thing.size]
  if any(index == host for _, host in inside):
    return _HOST_RADIUS
  if any(index == inner for inner, _ in inside):
    return _INNER_RADIUS
  compared = any(
      index in (r.subject, r.object)
      and r.predicate in ("larger than", "smaller than")
      for r in graph.relations
  )
  return _COMPARED_RADIUS if compared else _RADIUS[None]
