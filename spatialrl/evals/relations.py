"""Does the picture show what the prompt says? Decided by the pixel oracle."""

import numpy as np

from spatialrl.scenes import check, grammar, oracle
from spatialrl.scenes.graph_iou import scene_graph_iou
from spatialrl.scenes.layout import coverage


def verdicts(prompts, images):
  """One verdict per image.

  Args:
    prompts: list of N str of the grammar.
    images: u8[N, S, S, 3].

  Returns:
    list of (SceneGraph, detections, check.Verdict).
  """
  found = oracle.detect(images)
  graphs = [grammar.parse(prompt) for prompt in prompts]
  return [
      (graph, detections, check.check(graph, detections))
      for graph, detections in zip(graphs, found, strict=True)
  ]


def summary(judged):
  """Means over images of what `verdicts` found.

  Returns:
    dict of floats in [0, 1]: `all_relations` (every object and every relation
    right), `per_relation`, `object_recall`, and `sg_iou` (LAION-SG's set IoU
    of triples).
  """
  each = [verdict for _, _, verdict in judged]
  ious = [_triple_iou(graph, detections) for graph, detections, _ in judged]
  return {
      "all_relations": float(np.mean([v.all_relations for v in each])),
      "per_relation": float(np.mean([v.per_relation for v in each])),
      "object_recall": float(np.mean([v.object_recall for v in each])),
      "sg_iou": float(np.mean(ious)),
  }


def rewards(judged):
  """The oracle as a reward: share of relations that hold, f32[N]."""
  return np.array([v.per_relation for _, _, v in judged], np.float32)


def box_maps(judged, side):
  """Where the things of the prompts are, on a grid.

  Args:
    judged: N verdicts as `verdicts` gives them.
    side: cells a side.

  Returns:
    f32[N, side, side], the largest share of each cell that the box of a thing
    of the graph covers; 0 throughout where none was found.
  """
  maps = np.zeros((len(judged), side, side), np.float32)
  for i, (graph, detections, _) in enumerate(judged):
    labels = {thing.label for thing in graph.things}
    boxes = [
        found.box
        for found in detections
        if found.label in labels and found.score > check.THRESHOLD
    ]
    maps[i] = coverage(boxes, side)
  return maps


def layout_diversity(judged, prompts):
  """Mean distance between the layouts of the correct images of a prompt.

  Wrong layouts are not variety, so only images with every relation right
  count. The distance of two layouts is the mean over things of the Euclidean
  distance of (centre x, centre y, half side), as shares of the image's side.

  Args:
    judged: as `verdicts` gives, images of one prompt in any order.
    prompts: list of N str, the prompt of each.

  Returns:
    dict from prompt to (mean distance, pairs of images it is taken over), for
    the prompts with two or more correct images.
  """
  layouts = {}
  for prompt, (graph, detections, verdict) in zip(prompts, judged, strict=True):
    if verdict.all_relations:
      vector = check.layout_vector(graph, detections)
      layouts.setdefault(prompt, []).append(vector)
  spread = {}
  for prompt, vectors in layouts.items():
    if len(vectors) < 2:
      continue
    stack = np.stack(vectors)
    gaps = np.linalg.norm(stack[:, None] - stack[None], axis=-1).mean(-1)
    upper = np.triu_indices(len(stack), 1)
    spread[prompt] = (float(gaps[upper].mean()), len(upper[0]))
  return spread


def relative_diversity(spread, reference):
  """Layout diversity as a share of that of fresh renders.

  Args:
    spread: of the policy's images, from `layout_diversity`.
    reference: of renders of the same prompts.

  Returns:
    Sum over prompts in both of pairs x distance, divided by the same sum with
    the reference's distance; None when no prompt is in both.
  """
  shared = spread.keys() & reference.keys()
  ours = sum(spread[p][0] * spread[p][1] for p in shared)
  fresh = sum(reference[p][0] * spread[p][1] for p in shared)
  return ours / fresh if fresh else None


def _triple_iou(graph, detections):
  truth, predicted, objects, predicates = check.triples(graph, detections)
  return scene_graph_iou(truth, predicted, objects, predicates).triples
