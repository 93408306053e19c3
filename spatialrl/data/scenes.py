"""Batches of the embedded world: captioned scenes, reward pairs, prompts.

Everything here is plain numpy and a function of its arguments alone, so a job
that resumes at step n reads the batch that an uninterrupted one reads.
"""

import dataclasses

import numpy as np

from spatialrl.data import positions
from spatialrl.scenes import grammar, layout, perturb, render, sample
from spatialrl.scenes import graph as graphs

# They keep the streams of the functions below apart.
_PAIRS, _PROMPTS, _THINGS, _RENDERS = 1, 2, 3, 4
_TRIES = 8  # perturbations of one scene before another scene is drawn
_ROUND = 256  # scenes drawn at once for prompts
_EMPTY_ROUNDS = 20  # without a new prompt, before giving up


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Two images and two prompts each; every image satisfies its own prompt.

  Attributes:
    prompts: list of B str.
    perturbed_prompts: list of B str, the same things otherwise related.
    perfect: u8[B, S, S, 3], satisfies `prompts`.
    perturbed: u8[B, S, S, 3], satisfies `perturbed_prompts` and therefore
      contradicts `prompts`.
    contradicted: i32[B], relations of the prompt the perturbed image breaks.
    perfect_boxes: list of B f32[n, 4], where the things stand in `perfect`
      that the pair is about: those of contradicted relations, or the changed
      one; (x1, y1, x2, y2) as shares of the image's side.
    perturbed_boxes: the same things in `perturbed`.
  """

  prompts: list
  perturbed_prompts: list
  perfect: np.ndarray
  perturbed: np.ndarray
  contradicted: np.ndarray
  perfect_boxes: list
  perturbed_boxes: list


def captioned_scenes(
    seed, step, batch, *, size, relations, wrong_share, held_out=False
):
  """Draws images and captions, a share of them with one wrong relation.

  Args:
    seed: int >= 0.
    step: int >= 0; every (seed, step) is a batch of its own.
    batch: int, B.
    size: int, pixels a side, S.
    relations: tuple of ints from 1 to 6, relations a scene may state; at most
      3 when held out.
    wrong_share: float in [0, 1], probability that a caption contradicts its
      image in one relation.
    held_out: bool; True relates only held-out pairs of labels, False none.

  Returns:
    (u8[B, S, S, 3] images, list of captions, list of SceneGraphs); the graphs
    are what the images show, whatever the captions say.
  """
  captions, shown, placed = captioned_layouts(
      seed, step, batch, relations=relations, wrong_share=wrong_share,
      held_out=held_out,
  )
  return render.render_batch(shown, placed, size), captions, shown


def captioned_layouts(
    seed, step, batch, *, relations, wrong_share, held_out=False
):
  """Draws what `captioned_scenes` draws, before it is rendered.

  Args:
    seed: as in `captioned_scenes`, like all the others.
    step: int.
    batch: int, B.
    relations: tuple of ints.
    wrong_share: float.
    held_out: bool.

  Returns:
    Three lists of length B: captions, SceneGraphs and their Layouts.
  """
  if not 0 <= wrong_share <= 1:
    raise ValueError(f"wrong_share is {wrong_share}; allowed is 0 to 1.")
  rng = np.random.default_rng([seed, step])
  shown, placed = _scenes(rng, batch, relations, held_out)
  wrong = rng.uniform(size=batch) < wrong_share
  told = [
      _perturbed(rng, graph, (1, 1), held_out) if w else graph
      for graph, w in zip(shown, wrong, strict=True)
  ]
  return [grammar.prompt(graph) for graph in told], shown, placed


def reward_pairs(
    seed, step, batch, *, size, relations, perturbed=(1, 1), held_out=False
):
  """Draws pairs of images of which the first one satisfies the prompt.

  The two images share the things but not their places and sizes. In half of
  the pairs, by a coin, the sampled scene is the perfect one, in the others its
  perturbation is, so that an image alone never tells on which side it stands.

  Args:
    seed: int >= 0.
    step: int >= 0; every (seed, step) is a batch of its own.
    batch: int, B.
    size: int, pixels a side, S.
    relations: tuple of ints from 1 to 6, relations a prompt may state; at most
      3 when held out.
    perturbed: (low, high), how many of them the perturbed image contradicts;
      low is at most the smallest of `relations`.
    held_out: bool; True relates only held-out pairs of labels, False none.

  Returns:
    Pairs.
  """
  _require_relations(relations, held_out)
  if not 1 <= perturbed[0] <= min(perturbed[1], *relations):
    raise ValueError(
        f"perturbed is {perturbed}; allowed are low <= high with low from 1 to"
        f" {min(relations)}, the smallest of relations {tuple(relations)}."
    )
  rng = np.random.default_rng([seed, step, _PAIRS])
  wanted = rng.choice(np.asarray(relations), batch)
  pairs = [None] * batch
  for number in sorted(set(wanted.tolist())):
    places = np.flatnonzero(wanted == number)
    made = _pairs(rng, len(places), number, perturbed, held_out)
    for place, pair in zip(places, made, strict=True):
      pairs[place] = pair
  good, bad = zip(*pairs, strict=True) if pairs else ((), ())
  about = [perturb.contradicted_things(g[0], b[0]) for g, b in pairs]
  return Pairs(
      prompts=[grammar.prompt(graph) for graph, _ in good],
      perturbed_prompts=[grammar.prompt(graph) for graph, _ in bad],
      perfect=render.render_batch(*_columns(good), size),
      perturbed=render.render_batch(*_columns(bad), size),
      contradicted=np.array(
          [perturb.contradicted(g[0], b[0]) for g, b in pairs], np.int32
      ),
      perfect_boxes=_boxes(good, about),
      perturbed_boxes=_boxes(bad, about),
  )


def thing_pairs(seed, step, batch, *, size, relations):
  """Draws pairs of images that differ in the colour or shape of one thing.

  Places and sizes are the same, and the relations between the places.

  Args:
    seed: int >= 0.
    step: int >= 0; every (seed, step) is a batch of its own.
    batch: int, B.
    size: int, pixels a side, S.
    relations: tuple of ints from 1 to 6, relations a prompt may state.

  Returns:
    Pairs; `contradicted` counts the relations of the thing that changed.
  """
  rng = np.random.default_rng([seed, step, _THINGS])
  kept = []
  while len(kept) < batch:
    drawn = _scenes(rng, batch - len(kept), relations, False)
    for graph, placed in zip(*drawn, strict=True):
      other, index = perturb.other_thing(rng, graph)
      if not any(graphs.is_held_out(a, b) for a, _, b in other.triples()):
        touched = sum(
            index in (r.subject, r.object) for r in graph.relations
        )
        kept.append((graph, other, placed, touched, index))
  shown, changed, placed, touched, index = map(list, zip(*kept, strict=True))
  boxes = _boxes(zip(shown, placed, strict=True), [{i} for i in index])
  return Pairs(
      prompts=[grammar.prompt(graph) for graph in shown],
      perturbed_prompts=[grammar.prompt(graph) for graph in changed],
      perfect=render.render_batch(shown, placed, size),
      perturbed=render.render_batch(changed, placed, size),
      contradicted=np.array(touched, np.int32),
      perfect_boxes=boxes,
      perturbed_boxes=boxes,
  )


def prompts(seed, count, *, relations, held_out=False):
  """Draws distinct prompts.

  Args:
    seed: int >= 0.
    count: int, how many; the list for a smaller count is the beginning of it.
    relations: tuple of ints from 1 to 6, relations a prompt may state; at most
      3 when held out.
    held_out: bool; True relates only held-out pairs of labels, False none.

  Returns:
    list of str.

  Raises:
    ValueError: when there are not so many distinct ones.
  """
  found, empty, turn = {}, 0, 0
  while len(found) < count:
    rng = np.random.default_rng([seed, turn, _PROMPTS])
    before, turn = len(found), turn + 1
    for graph in _scenes(rng, _ROUND, relations, held_out)[0]:
      found[grammar.prompt(graph)] = None
    empty = empty + 1 if len(found) == before else 0
    if empty == _EMPTY_ROUNDS:
      raise ValueError(
          f"count is {count}; only {len(found)} distinct prompts were found"
          f" with relations {tuple(relations)} and held_out {held_out}."
      )
  return list(found)[:count]


def renders(seed, step, prompts, *, size):
  """Draws an image and a contradiction of each prompt.

  Args:
    seed: int >= 0.
    step: int >= 0; every (seed, step) is a batch of its own.
    prompts: list of B str with at least one relation each.
    size: int, pixels a side, S.

  Returns:
    (u8[B, S, S, 3], images that satisfy the prompts, each in a layout of its
    own; list of B str, the prompts with one relation flipped).

  Raises:
    ValueError: for a prompt that no layout was found for.
  """
  rng = np.random.default_rng([seed, step, _RENDERS])
  shown = [grammar.parse(prompt) for prompt in prompts]
  placed = [
      layout.place(rng, graph)
      # Some with four relations and more fit one layout in a million.
      or positions.choose(rng, positions.draw(rng, len(graph.things)), graph)
      or layout.place(rng, graph, rounds=2000)
      for graph in shown
  ]
  for prompt, found in zip(prompts, placed, strict=True):
    if found is None:
      raise ValueError(f"no layout was found for the prompt {prompt!r}.")
  flipped = []
  for graph in shown:
    others = graph.with_one_flipped()
    flipped.append(grammar.prompt(others[rng.integers(len(others))]))
  return render.render_batch(shown, placed, size), flipped


def _pairs(rng, count, number, perturbed, held_out):
  """`count` pairs of (SceneGraph, Layout) whose graphs state `number`."""
  pairs, pool = [], None
  while len(pairs) < count:
    # A few more than wanted, since for some no other layout is found.
    more = count - len(pairs) + 4
    for scene in zip(*_scenes(rng, more, (number,), held_out), strict=True):
      pool = pool or positions.draw(rng, len(scene[0].things))
      other = _other_scene(rng, scene[0], pool, perturbed, held_out)
      if other:
        pairs.append((scene, other) if rng.uniform() < 0.5 else (other, scene))
      if len(pairs) == count:
        break
  return pairs


def _scenes(rng, count, relations, held_out):
  """(SceneGraphs, Layouts), two lists, every relation of the right split."""
  _require_relations(relations, held_out)
  return _columns(
      sample.sample_scenes(rng, count, relations=relations, held_out=held_out)
  )


def _require_relations(relations, held_out):
  most = 3 if held_out else 6
  if not relations or not all(1 <= number <= most for number in relations):
    reason = ", as no four labels are all held out from each other"
    raise ValueError(
        f"relations is {tuple(relations)}; allowed are 1 to {most}"
        f"{reason if held_out else ''}."
    )


def _boxes(scenes, things):
  """Boxes of some things of each (SceneGraph, Layout): list of f32[n, 4]."""
  return [
      placed.boxes[np.isin(placed.thing, sorted(chosen))]
      for (_, placed), chosen in zip(scenes, things, strict=True)
  ]


def _columns(scenes):
  return [graph for graph, _ in scenes], [placed for _, placed in scenes]


def _perturbed(rng, graph, relations, held_out):
  """A perturbation that stays in its split; None if the graph has none."""
  while True:
    other = perturb.perturb(rng, graph, relations=relations)
    # A swap relates other pairs of things than the scene did.
    if other is None or all(
        graphs.is_held_out(a, b) == held_out for a, _, b in other.triples()
    ):
      return other


def _other_scene(rng, graph, pool, relations, held_out):
  """A perturbed graph and a layout of it, or None when none was found."""
  for _ in range(_TRIES):
    other = _perturbed(rng, graph, relations, held_out)
    placed = other and positions.choose(rng, pool, other)
    if placed:
      return other, placed
  return None
