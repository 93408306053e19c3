"""Scenes of the study: two things, and two to four relations between them.

The directions of a pair, its distance and its sizes are independent, so up to
four predicates hold at once. Deterministic from (seed, step), numpy only.
"""

import functools

import numpy as np

from spatialrl.data.tokenizers import caption_tokens
from spatialrl.scenes import grammar, render
from spatialrl.scenes import graph as graphs
from spatialrl.scenes import layout as layouts
from spatialrl.scenes.holds import clearance

PREDICATES = tuple(graphs.OPPOSITE)
RELATIONS = (2, 3, 4)
TOKENS = caption_tokens(max(RELATIONS))
LABELS = [(c, s) for c in graphs.COLOURS for s in graphs.SHAPES]
_POOL, _CHUNK = 4096, 1 << 15  # layouts kept for each number, tried at once
_SCENES, _PROMPTS = 1, 2  # keep the random streams apart
_EMPTY_ROUNDS = 20


def draw(rng, count, *, relations=RELATIONS, held_out=False):
  """Draws scenes, layout first, and states some of what holds in it.

  Args:
    rng: numpy Generator.
    count: int, scenes.
    relations: tuple of ints from 1 to 4; each scene states one of them.
    held_out: bool; True relates only held-out pairs of labels, False none
      (`graph.is_held_out`).

  Returns:
    list of (SceneGraph, Layout), things in order of mention.

  Raises:
    ValueError: for a number of relations that no pair can have.
  """
  for number in relations:
    if number not in (1, 2, 3, 4):
      raise ValueError(
          f"relations is {tuple(relations)}; allowed are 1 to 4."
      )
  return [
      _scene(rng, int(number), held_out)
      for number in rng.choice(np.asarray(relations), count)
  ]


def captioned(seed, step, batch, *, size, relations, wrong_share):
  """Images and captions, of which a share contradicts one relation.

  Args:
    seed: int >= 0.
    step: int >= 0; every (seed, step) is a batch of its own.
    batch: int, B.
    size: int, pixels a side, S.
    relations: as for `draw`.
    wrong_share: float in [0, 1].

  Returns:
    (u8[B, S, S, 3], list of B captions).
  """
  rng = np.random.default_rng([seed, step, _SCENES])
  scenes = draw(rng, batch, relations=relations)
  told = []
  for graph, _ in scenes:
    wrong = graph.with_one_flipped()
    chosen = wrong[rng.integers(len(wrong))]
    told.append(chosen if rng.uniform() < wrong_share else graph)
  images = render.render_batch(*zip(*scenes, strict=True), size)
  return images, [grammar.prompt(graph) for graph in told]


def prompts(seed, count, *, relations=RELATIONS, held_out=False):
  """Distinct prompts; arguments as for `draw`, the seed an int >= 0.

  Raises:
    ValueError: when there are not so many.
  """
  found, empty, turn = {}, 0, 0
  while len(found) < count:
    rng = np.random.default_rng([seed, turn, _PROMPTS])
    before, turn = len(found), turn + 1
    for graph, _ in draw(rng, 256, relations=relations, held_out=held_out):
      found[grammar.prompt(graph)] = None
    empty = empty + 1 if len(found) == before else 0
    if empty == _EMPTY_ROUNDS:
      raise ValueError(
          f"count is {count}; only {len(found)} distinct prompts were found."
      )
  return list(found)[:count]


def inverse(predicate):
  """What b is to a when a PREDICATE b."""
  symmetric = predicate in ("near", "far from")
  return predicate if symmetric else graphs.OPPOSITE[predicate]


def other_labels(graph):
  """(colour, shape) of everything that is not in a graph."""
  there = {thing.label for thing in graph.things}
  return [label for label in LABELS if " ".join(label) not in there]


def _scene(rng, number, held_out):
  centre, radius, true = _layouts(number)
  k = rng.integers(len(centre))
  # The pair is ordered at random, so nothing hangs on the pool's order.
  order = (0, 1) if rng.uniform() < 0.5 else (1, 0)
  chosen = rng.permutation(np.flatnonzero(true[k]))[:number]
  relations = []
  for index in chosen:
    predicate = PREDICATES[index]
    if order == (1, 0):
      predicate = inverse(predicate)
    relation = graphs.Relation(0, predicate, 1)
    if relations and rng.uniform() < 0.5:  # the first clause mentions 0 first
      relation = graphs.Relation(1, inverse(predicate), 0)
    relations.append(relation)
  things = tuple(graphs.Thing(*label) for label in _labels(rng, held_out))
  placed = layouts.Layout(
      centre[k, order, :], radius[k, order], np.arange(2, dtype=np.int32)
  )
  return graphs.SceneGraph(things, tuple(relations)), placed


def _labels(rng, held_out):
  while True:
    a, b = rng.choice(len(LABELS), 2, replace=False)
    names = (" ".join(LABELS[a]), " ".join(LABELS[b]))
    if graphs.is_held_out(*names) == held_out:
      return LABELS[a], LABELS[b]


@functools.cache
def _layouts(number):
  """Pairs of which at least `number` predicates hold with a margin.

  Returns:
    (centres f32[N, 2, 2], radii f32[N, 2], bool[N, predicates]).
  """
  rng = np.random.default_rng(number)
  kept, found = [], 0
  while found < _POOL:
    radius = rng.uniform(0.10, 0.20, (_CHUNK, 2))
    centre = layouts.random_centres(rng, radius)
    clear = layouts.separate(centre, radius)
    centre, radius = centre[clear], radius[clear]
    a, b = np.moveaxis(layouts.boxes_of(centre, radius), 1, 0)
    true = np.stack(
        [clearance(p, a, b) > layouts.MARGIN[p] for p in PREDICATES], -1
    )
    good = true.sum(-1) >= number
    kept.append((centre[good], radius[good], true[good]))
    found += int(good.sum())
  centre, radius, true = (np.concatenate(part) for part in zip(*kept,
                                                              strict=True))
  return centre.astype(np.float32), radius.astype(np.float32), true
