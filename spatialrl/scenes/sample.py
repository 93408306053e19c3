"""Random scenes of the embedded world, many at a time."""

import itertools

import numpy as np

from spatialrl.scenes import graph as graphs
from spatialrl.scenes import layout as layouts
from spatialrl.scenes.holds import clearance

_LABELS = tuple(itertools.product(graphs.COLOURS, graphs.SHAPES))
_CHUNK = 256


def sample_scenes(
    rng, count, *, relations, held_out=False, predicates=graphs.DIRECTIONS
):
  """Draws scenes, layout first, and reads off relations that hold in it.

  Args:
    rng: numpy Generator.
    count: int, number of scenes.
    relations: tuple of ints; each scene states as many relations as one of
      them says, uniformly. One relation takes two things, two or three take
      three, four to six take four.
    held_out: bool; True relates only pairs of labels that training never
      relates (`graph.is_held_out`), False only the others.
    predicates: predicates to choose from.

  Returns:
    list of (SceneGraph, Layout), things in order of mention.

  Raises:
    ValueError: for a number of relations that no scene has.
  """
  for number in relations:
    if number not in (1, 2, 3, 4, 5, 6):
      raise ValueError(f"relations is {relations}; allowed are 1 to 6.")
  if tuple(predicates) == ("inside",) and max(relations) > 1:
    raise ValueError(
        f"relations is {relations}; only 1 is allowed when inside is the only"
        " predicate."
    )
  wanted = rng.choice(np.asarray(relations), count)
  scenes = [None] * count
  for number in sorted(set(relations)):
    places = np.flatnonzero(wanted == number)
    made = _scenes(rng, len(places), int(number), held_out, predicates)
    for place, scene in zip(places, made, strict=True):
      scenes[place] = scene
  return scenes


def _scenes(rng, count, relations, held_out, predicates):
  """`count` scenes that state the same number of relations."""
  things = next(n for n in (2, 3, 4) if n * (n - 1) // 2 >= relations)
  boxed = tuple(p for p in predicates if p != "inside")
  share_inside = (len(predicates) - len(boxed)) / len(predicates)
  scenes = []
  while len(scenes) < count:
    if rng.uniform() < share_inside:
      scene = _inside_scene(rng, held_out)
      scenes += [scene] if relations == 1 and scene else []
      if relations == 1 or not boxed:
        continue
    scenes += _chunk(rng, things, relations, held_out, boxed)
  return scenes[:count]


def _chunk(rng, things, relations, held_out, predicates):
  compares = any(p in ("larger than", "smaller than") for p in predicates)
  low, high = (0.10, 0.20) if compares else (0.11, 0.17)
  radius = rng.uniform(low, high, (_CHUNK, things))
  centre = layouts.random_centres(rng, radius)
  clear = layouts.separate(centre, radius)
  centre, radius = centre[clear], radius[clear]
  boxes = layouts.boxes_of(centre, radius)
  pairs = list(itertools.permutations(range(things), 2))
  clearances = np.stack(
      [[clearance(p, boxes[:, i], boxes[:, j]) - layouts.MARGIN[p]
        for p in predicates] for i, j in pairs]
  )  # [pairs, predicates, scenes]
  scenes = []
  for k in range(len(centre)):
    labels = _labels(rng, things, held_out)
    chosen = _relations(
        rng, labels, pairs, clearances[:, :, k] > 0, relations, held_out,
        predicates,
    )
    if chosen is None:
      continue
    order = rng.permutation(len(chosen))
    graph = graphs.SceneGraph(
        tuple(graphs.Thing(*label) for label in labels),
        tuple(chosen[i] for i in order),
    )
    layout = layouts.Layout(
        centre[k].astype(np.float32),
        radius[k].astype(np.float32),
        np.arange(things, dtype=np.int32),
    )
    scenes.append(_in_mention_order(graph, layout))
  return scenes


def _labels(rng, things, held_out):
  """Distinct labels; for held-out scenes every pair of them is held out."""
  while True:
    chosen = []
    for index in rng.permutation(len(_LABELS)):
      label = " ".join(_LABELS[index])
      if held_out and not all(
          graphs.is_held_out(label, " ".join(other)) for other in chosen
      ):
        continue
      chosen.append(_LABELS[index])
      if len(chosen) == things:
        return chosen


def _relations(rng, labels, pairs, true, number, held_out, predicates):
  """Picks `number` pairs and one true predicate each, or None."""
  names = [" ".join(label) for label in labels]
  order = rng.permutation(len(pairs))
  chosen, used = [], set()
  for index in order:
    i, j = pairs[index]
    options = np.flatnonzero(true[index])
    if (
        frozenset((i, j)) in used
        or not len(options)
        or graphs.is_held_out(names[i], names[j]) != held_out
    ):
      continue
    used.add(frozenset((i, j)))
    predicate = predicates[options[rng.integers(len(options))]]
    chosen.append(graphs.Relation(int(i), predicate, int(j)))
    if len(chosen) == number:
      mentioned = {k for r in chosen for k in (r.subject, r.object)}
      return chosen if len(mentioned) == len(labels) else None
  return None


def _inside_scene(rng, held_out):
  labels = _labels(rng, 2, held_out)
  names = [" ".join(label) for label in labels]
  if graphs.is_held_out(*names) != held_out:
    return None
  graph = graphs.SceneGraph(
      tuple(graphs.Thing(*label) for label in labels),
      (graphs.Relation(0, "inside", 1),),
  )
  layout = layouts.place(rng, graph, rounds=4)
  return layout and (graph, layout)


def _in_mention_order(graph, layout):
  """Renumbers things and copies together."""
  ordered = graph.in_mention_order()
  labels = [thing.label for thing in graph.things]
  old = [labels.index(thing.label) for thing in ordered.things]
  return ordered, layouts.Layout(
      layout.centre[old], layout.radius[old], layout.thing
  )
