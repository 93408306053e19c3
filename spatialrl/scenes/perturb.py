"""Perturbed scene graphs: the loser's side of a SpatialReward pair."""

import dataclasses

from spatialrl.scenes import graph as graphs


def perturb(rng, graph, *, relations):
  """Flips or swaps relations so that no layout satisfies both graphs.

  A flip replaces one relation by its contradiction; a swap exchanges the
  places of two things in all relations. The taxonomy is our reading of the
  pairs shown in SpatialScore (arXiv:2602.24233, fig. 3), which flip and swap;
  the published text does not list it (reconstructed).

  Args:
    rng: numpy Generator.
    graph: SceneGraph with at least one relation.
    relations: (low, high), how many relations shall be contradicted.

  Returns:
    SceneGraph with the same things, whose canonical relations contradict
    between low and high of the original's, or None when the graph has too few
    relations for that.
  """
  low, high = relations
  if not 1 <= low <= high:
    raise ValueError(f"relations is {relations}; low <= high from 1 allowed.")
  total = len(graph.relations)
  if total < low:
    return None
  if rng.uniform() < 0.5:
    swapped = _swap(rng, graph, low, high)
    if swapped is not None:
      return swapped
  count = int(rng.integers(low, min(high, total) + 1))
  flip = set(rng.permutation(total)[:count].tolist())
  return dataclasses.replace(
      graph,
      relations=tuple(
          r.flipped() if i in flip else r for i, r in enumerate(graph.relations)
      ),
  )


def other_thing(rng, graph):
  """Gives one thing another colour or another shape.

  Ours: the published pairs differ in relations only, as the backbone of
  SpatialScore knows things from before and keeps what it knows.

  Args:
    rng: numpy Generator.
    graph: SceneGraph.

  Returns:
    (SceneGraph with the same relations and distinct labels, i32 index of the
    thing that changed).
  """
  index = int(rng.integers(len(graph.things)))
  thing = graph.things[index]
  taken = {other.label for other in graph.things}
  field, names = (
      ("colour", tuple(graphs.COLOURS))
      if rng.uniform() < 0.5
      else ("shape", graphs.SHAPES)
  )
  options = [dataclasses.replace(thing, **{field: name}) for name in names]
  options = [option for option in options if option.label not in taken]
  things = list(graph.things)
  things[index] = options[rng.integers(len(options))]
  return dataclasses.replace(graph, things=tuple(things)), index


def contradicted(graph, other):
  """How many relations of `graph` cannot hold where those of `other` do.

  Args:
    graph: SceneGraph.
    other: SceneGraph with the same things in the same order.
  """
  return len(_contradicted(graph, other))


def contradicted_things(graph, other):
  """Which things the contradicted relations are about: set of indices.

  Args:
    graph: SceneGraph.
    other: SceneGraph with the same things in the same order.
  """
  broken = _contradicted(graph, other)
  return {i for r in broken for i in (r.subject, r.object)}


def _contradicted(graph, other):
  stated = {relation.canonical() for relation in other.relations}
  return [r for r in graph.relations if r.flipped().canonical() in stated]


def _swap(rng, graph, low, high):
  """Exchanges two things; None if no pair contradicts the wanted number."""
  things = len(graph.things)
  pairs = [(i, j) for i in range(things) for j in range(i + 1, things)]
  for index in rng.permutation(len(pairs)):
    i, j = pairs[index]
    place = {i: j, j: i}
    relations = tuple(
        graphs.Relation(
            place.get(r.subject, r.subject),
            r.predicate,
            place.get(r.object, r.object),
        )
        for r in graph.relations
    )
    if any(
        graph.things[k].count != 1 for r in relations
        for k in (r.subject, r.object)
    ):
      continue
    swapped = dataclasses.replace(graph, relations=relations)
    if low <= contradicted(graph, swapped) <= high:
      return swapped
  return None
