"""How far the oracle can be trusted, as a table.

  python -m experiments.oracle.measure --scenes 2000 --sizes 32
  python -m experiments.oracle.measure --scenes 500 --sizes 16 64

Pairs of one colour inside each other are left out: they cannot be seen.

Two decisions per relation: it holds, and its contradiction does not; both are
wrong where a thing is missing. A thing is found when a counted detection of
its label has IoU above 0.5 with it; what is left over is spurious.
"""

import argparse
import time

import numpy as np

from spatialrl.scenes import check, layout, oracle, render, sample
from spatialrl.scenes import graph as graphs
from spatialrl.scenes.holds import holds
from spatialrl.scenes.relations import iou

LABELS = [(c, s) for c in graphs.COLOURS for s in graphs.SHAPES]


def stating(*numbers, predicates=graphs.DIRECTIONS):
  """Draws scenes that state so many relations each."""

  def draw(rng, count):
    scenes = sample.sample_scenes(
        rng, count, relations=numbers, predicates=predicates
    )
    return [scene for scene in scenes if visible(scene)]

  return draw


def counts_and_sizes(rng, count):
  """Draws scenes of sized pairs and of several copies."""
  return [counted_scene(rng) for _ in range(count)]


def counted_scene(rng):
  """A sized pair with a relation, or up to four copies of up to two things."""
  while True:
    kinds = rng.permutation(len(LABELS))[:2]
    sizes = [(None, *graphs.SIZES)[k] for k in rng.integers(0, 3, 2)]
    pair = rng.uniform() < 0.5
    counts = (1, 1) if pair else rng.integers(1, graphs.MAX_COUNT + 1, 2)
    things = tuple(
        graphs.Thing(*LABELS[kind], size, int(count))
        for kind, size, count in zip(kinds, sizes, counts, strict=True)
    )
    predicate = list(graphs.OPPOSITE)[rng.integers(len(graphs.OPPOSITE))]
    stated = (graphs.Relation(0, predicate, 1),) if pair else ()
    graph = graphs.SceneGraph(things, stated)
    places = layout.place(rng, graph, rounds=2)
    if places:
      return graph, places


def visible(scene):
  """False for a thing inside another one of its colour: no pixel shows it."""
  graph, _ = scene
  return not any(
      r.predicate == "inside"
      and graph.things[r.subject].colour == graph.things[r.object].colour
      for r in graph.relations
  )


def blur(images, rng, sigma=1.0):
  """Gaussian of `sigma` pixels; `rng` unused."""
  del rng
  at = np.arange(images.shape[1])
  kernel = np.exp(-((at[:, None] - at) ** 2) / (2 * sigma**2))
  kernel = (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)
  planes = np.moveaxis(images.astype(np.float32), -1, 1)
  return to_bytes(np.moveaxis(kernel @ planes @ kernel.T, 1, -1))


def noise(images, rng, std=25.5):
  """Gaussian of a tenth of the range, clipped."""
  return to_bytes(images + std * rng.standard_normal(images.shape, np.float32))


def to_bytes(values):
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)


SETS = {
    "one direction": stating(1),
    "three directions": stating(3),
    "all predicates": stating(1, 3, predicates=graphs.PREDICATES),
    "counts and sizes": counts_and_sizes,
    "inside": stating(1, predicates=("inside",)),
}
HARM = {
    "none": (),
    "blur": (blur,),
    "noise": (noise,),
    "blur, then noise": (blur, noise),
    "noise, then blur": (noise, blur),
}


def measure(scenes, images):
  """dict of the table's columns for one set of pictures."""
  start = time.process_time()
  read = oracle.detect(images)
  seconds = time.process_time() - start
  things = found = tight = spurious = 0
  decisions, pictures, scores = [], [], []
  for (graph, places), detections in zip(scenes, read, strict=True):
    kept = [d for d in detections if d.score > check.THRESHOLD]
    scores += [d.score for d in kept]
    hits = 0
    for box, thing in zip(places.boxes, places.thing, strict=True):
      label = graph.things[thing].label
      overlap = max((iou(d.box, box) for d in kept if d.label == label),
                    default=0.0)
      hits += overlap > 0.5
      tight += overlap > 0.9
    things += len(places.thing)
    found += hits
    spurious += len(kept) - hits
    pictures.append(check.check(graph, detections).all_relations)
    top = {d.label: d.box for d in reversed(kept)}
    for relation in graph.relations:
      for stated, truth in ((relation, True), (relation.flipped(), False)):
        a = top.get(graph.things[stated.subject].label)
        b = top.get(graph.things[stated.object].label)
        decisions.append(
            a is not None
            and b is not None
            and bool(holds(stated.predicate, a, b)) == truth
        )
  return {
      "things": things,
      "found %": 100 * found / things,
      "IoU > 0.9 %": 100 * tight / things,
      "spurious": spurious,
      "decisions": len(decisions),
      "right %": 100 * np.mean(decisions),
      "whole picture %": 100 * np.mean(pictures),
      "1 % score": np.quantile(scores, 0.01),
      "ms": 1e3 * seconds / len(images),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--scenes", type=int, default=2000, help="in each set")
  parser.add_argument("--sizes", type=int, nargs="+", default=[32])
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  header = None
  for name, draw in SETS.items():
    rng = np.random.default_rng(options.seed)
    scenes = draw(rng, options.scenes)
    for size in options.sizes:
      clean = np.stack([render.render(*scene, size) for scene in scenes])
      for harm, steps in HARM.items():
        images = clean
        for step in steps:
          images = step(images, rng)
        row = {"px": size, "scenes": name, "harm": harm}
        row |= measure(scenes, images)
        if header is None:
          header = list(row)
          print("| " + " | ".join(header) + " |")
          print("|" + "---|" * len(header))
        cells = [f"{v:.2f}" if isinstance(v, float) else v
                 for v in row.values()]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
  main()
