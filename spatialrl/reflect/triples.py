"""Edit triples: source scene, instruction, target scene; numpy only.

Rendered, so that what an instruction means is exact: the warm start of the
Inverse Diffuser.
"""

import dataclasses

import numpy as np

from spatialrl.reflect import scenes
from spatialrl.scenes import graph as graphs
from spatialrl.scenes import instructions, render
from spatialrl.scenes import layout as layouts
from spatialrl.scenes.instructions import Instruction
from spatialrl.scenes.layout import Layout

_TRIPLES = 3  # keeps this random stream apart from those of `scenes`
_SHARES = (0.45, 0.25, 0.1, 0.1, 0.1)  # of VERBS
_JITTER = 0.03  # of a drawn thing about the centre of its place
_MISREAD = 0.01  # std of a detected box's corners, shares of the side
_LARGE, _SMALL = (0.18, 0.20), (0.10, 0.115)
_RESIZED = 1.2  # an edit of the size changes it at least so many times
_TRIES = 20


@dataclasses.dataclass(frozen=True)
class Triples:
  """B edits.

  Attributes:
    source: u8[B, S, S, 3].
    target: u8[B, S, S, 3].
    ids: i32[B, LENGTH] of the instructions.
    region: bool[B, h, w], what may change.
  """

  source: np.ndarray
  target: np.ndarray
  ids: np.ndarray
  region: np.ndarray


def draw(seed, step, batch, *, size, side):
  """Draws a batch; every (seed, step) is one of its own.

  Args:
    seed: int >= 0.
    step: int >= 0.
    batch: int, B.
    size: int, pixels a side, S.
    side: int, latent positions a side, h = w.

  Returns:
    Triples.
  """
  rng = np.random.default_rng([seed, step, _TRIPLES])
  kept = []
  while len(kept) < batch:
    for scene in scenes.draw(rng, batch, relations=(1,)):
      verb = instructions.VERBS[rng.choice(len(_SHARES), p=_SHARES)]
      made = _edited(rng, verb, *scene)
      kept += [made] if made else []
  before, told, after = zip(*kept[:batch], strict=True)
  return Triples(
      source=render.render_batch(*zip(*before, strict=True), size),
      target=render.render_batch(*zip(*after, strict=True), size),
      ids=instructions.encode(told),
      region=np.stack([
          instructions.region(i, _boxes(rng, *scene), side)
          for i, scene in zip(told, before, strict=True)
      ]),
  )


def _edited(rng, verb, graph, placed):
  """(source scene, Instruction, target scene), or None if it does not fit."""
  i = int(rng.integers(2))
  thing = graph.things[i].label
  for _ in range(_TRIES):
    centre, radius = placed.centre.copy(), placed.radius.copy()
    place = other = None
    if verb in instructions.PLACED:
      place = instructions.PLACES[rng.integers(len(instructions.PLACES))]
      radius[i] = min(radius[i], instructions.REACH - _JITTER)
      centre[i] = instructions.centre(place)
      centre[i] += rng.uniform(-_JITTER, _JITTER, 2)
    elif verb == "enlarge":
      radius[i] = rng.uniform(*_LARGE)
    elif verb == "shrink":
      radius[i] = rng.uniform(*_SMALL)
    else:
      other = graph.things[1 - i].label
      centre = centre[::-1].copy()
    centre = np.clip(centre, radius[:, None], 1 - radius[:, None])
    ratio = radius[i] / placed.radius[i]
    seen = other or place or max(ratio, 1 / ratio) > _RESIZED
    if seen and layouts.separate(centre[None], radius[None])[0]:
      told = Instruction(verb, thing, place, other)
      after = graph, Layout(centre, radius, placed.thing)
      before = graph, placed
      if verb == "add":
        before = _without(rng, graph, placed, i, centre[i])
      return before, told, after
  return None


def _without(rng, graph, placed, i, where):
  """The scene before thing i was added: nothing there, or something else.

  What a policy has drawn badly is another shape or another colour, at the
  place or next to it; it goes when the thing comes.
  """
  rest = graph.things[1 - i]
  names = scenes.other_labels(graph)
  keep = [1 - i]
  things = (rest,)
  centre, radius = placed.centre[keep], placed.radius[keep]
  if rng.uniform() < 0.5:
    things += (graphs.Thing(*names[rng.integers(len(names))]),)
    centre = np.concatenate([centre, where[None]]).astype(np.float32)
    radius = np.concatenate([radius, placed.radius[i : i + 1]])
    radius[1] = min(radius[1], instructions.REACH - _JITTER)
  return graphs.SceneGraph(things), Layout(
      centre, radius, np.arange(len(things), dtype=np.int32)
  )


def _boxes(rng, graph, placed):
  """What a detector finds of a scene: label -> f32[4], a little off."""
  boxes = placed.boxes + rng.normal(0, _MISREAD, (len(placed.radius), 4))
  labels = [thing.label for thing in graph.things]
  return dict(zip(labels, boxes.astype(np.float32), strict=True))
