"""What the Checker and the Actor are taught with, made from scenes; numpy only.
"""

import dataclasses

import numpy as np

from spatialrl.data import tokenizers
from spatialrl.reflect import rules, scenes, triples
from spatialrl.reflect.actors import spread
from spatialrl.scenes import grammar, instructions, render
from spatialrl.scenes.graph import Relation, SceneGraph, Thing
from spatialrl.scenes.holds import holds

_TRIES = 8  # to find a sentence that is as true as it should be


def ask(rng, graph, found):
  """A sentence on a relation of two things, and whether it is true.

  Half of the questions are relations of the prompt; about half are true.
  """
  wanted = rng.uniform() < 0.5
  for _ in range(_TRIES):
    if rng.uniform() < 0.5:
      relation = graph.relations[rng.integers(len(graph.relations))]
    else:
      predicate = scenes.PREDICATES[rng.integers(len(scenes.PREDICATES))]
      pair = rng.permutation(len(graph.things))[:2]
      relation = Relation(int(pair[0]), predicate, int(pair[1]))
    true = _true(graph, relation, found)
    if true == wanted:
      break
  one = SceneGraph(graph.things, (relation,)).in_mention_order()
  return grammar.prompt(SceneGraph(one.things[:2], one.relations)), true


def rendered(rng, count, size):
  """Renders, and what to ask about them: (graph, boxes of what is there).

  In a quarter of them the graph has another thing than the picture.
  """
  drawn = scenes.draw(rng, count, relations=(1,))
  images = render.render_batch(*zip(*drawn, strict=True), size)
  shown = []
  for graph, placed in drawn:
    labels = [thing.label for thing in graph.things]
    boxes = dict(zip(labels, placed.boxes, strict=True))
    if rng.uniform() < 0.25:
      graph = _renamed(rng, graph)
    shown.append((graph, boxes))
  return images, shown


def mirrored(image, found):
  """A picture u8[S, S, 3] and its boxes, left and right exchanged.

  Every shape of the world is its own mirror image, so labels stay.
  """
  swapped = {
      label: np.float32([1 - x2, y1, 1 - x1, y2])
      for label, (x1, y1, x2, y2) in found.items()
  }
  return image[:, ::-1], swapped


def _renamed(rng, graph):
  things = list(graph.things)
  names = scenes.other_labels(graph)
  things[rng.integers(2)] = Thing(*names[rng.integers(len(names))])
  return dataclasses.replace(graph, things=tuple(things))


def imitations(seed, batch, size, tokenizer):
  """Scenes that break a prompt, and what the rules say of them.

  Args:
    seed: list of ints.
    batch: int, B.
    size: pixels a side, S.
    tokenizer: of the prompts.

  Returns:
    dict of images u8[B, S, S, 3], ids, mask, verdict f32[B, L], words
    i32[B, LENGTH] and prompts.
  """
  rng = np.random.default_rng(seed)
  rows = {"graph": [], "layout": [], "prompts": [], "told": [], "verdict": []}
  while len(rows["told"]) < batch:
    for (asked, _), (_, placed) in zip(
        scenes.draw(rng, batch), scenes.draw(rng, batch, relations=(1,)),
        strict=True,
    ):
      # The picture's places with the prompt's things, now and then one of them
      # gone or something else.
      shown = SceneGraph(asked.things)
      if rng.uniform() < 0.2:
        shown = triples.without_one(rng, shown)
        keep = np.arange(len(shown.things))
        placed = dataclasses.replace(
            placed, centre=placed.centre[keep], radius=placed.radius[keep],
            thing=keep.astype(np.int32),
        )
      labels = [thing.label for thing in shown.things]
      boxes = dict(zip(labels, placed.boxes, strict=True))
      boxes = {
          label: box for label, box in boxes.items()
          if label in {thing.label for thing in asked.things}
      }
      true = [_true(asked, relation, boxes) for relation in asked.relations]
      if all(true):
        continue
      rows["graph"].append(shown)
      rows["layout"].append(placed)
      rows["prompts"].append(grammar.prompt(asked))
      rows["told"].append(rules.act(rng, asked, np.flatnonzero(~np.array(true)),
                                    boxes))
      # The Checker is rarely quite sure, and now and then wrong.
      noise = np.abs(rng.normal(0, 0.1, len(true)))
      rows["verdict"].append(np.clip(np.abs(np.array(true) - noise), 0, 1))
  rows = {name: values[:batch] for name, values in rows.items()}
  ids, mask = tokenizers.encode(tokenizer, rows["prompts"], scenes.TOKENS)
  return {
      "images": render.render_batch(rows["graph"], rows["layout"], size),
      "ids": ids,
      "mask": mask,
      "verdict": spread(rows["prompts"], rows["verdict"]),
      "words": instructions.encode(rows["told"]),
      "prompts": np.array(rows["prompts"]),
  }


def _true(graph, relation, boxes):
  a, b = (graph.things[i].label for i in (relation.subject, relation.object))
  return a in boxes and b in boxes and bool(
      holds(relation.predicate, boxes[a], boxes[b])
  )
