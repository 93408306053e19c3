"""What the Checker is taught with; numpy only."""

import numpy as np

from spatialrl.reflect import scenes
from spatialrl.reflect.checker import indices
from spatialrl.scenes import render
from spatialrl.scenes.holds import holds

_OTHER = 0.25  # share of pairs of which one thing is replaced by another
_ALL = {" ".join(label) for label in scenes.LABELS}
_SHIFT = 4  # pixels by which a drawn picture is moved at most


def pairs(rng, labels, found):
  """Questions about pairs of things, and what is true.

  Args:
    rng: numpy Generator.
    labels: list of B pairs of labels.
    found: list of B dicts from label to box f32[4], all that is there.

  Returns:
    dict of things i32[B, 2, 2], there bool[B, 2], boxes f32[B, 2, 4], zeros
    for what is not there, and holds bool[B, P] by `scenes.PREDICATES`.
  """
  asked = [list(rng.permutation(pair)) for pair in labels]
  for pair in asked:
    if rng.uniform() < _OTHER:
      i = rng.integers(2)
      others = sorted(_ALL - set(pair))
      if rng.uniform() < 0.5:  # in drawn pictures it is the shape that fails
        others = [o for o in others if o.split()[0] == pair[i].split()[0]]
      pair[i] = others[rng.integers(len(others))]
  there = np.array([
      [label in boxes for label in pair]
      for pair, boxes in zip(asked, found, strict=True)
  ])
  nothing = np.zeros(4, np.float32)
  boxes = np.stack([
      [boxes.get(label, nothing) for label in pair]
      for pair, boxes in zip(asked, found, strict=True)
  ])
  true = [holds(p, boxes[:, 0], boxes[:, 1]) for p in scenes.PREDICATES]
  return {
      "things": indices(asked), "there": there, "boxes": boxes,
      "holds": np.stack(true, 1) & there.all(1, keepdims=True),
  }


def rendered(rng, count, size):
  """Renders u8[count, size, size, 3], the labels and the boxes of each."""
  drawn = scenes.draw(rng, count, relations=(1,))
  images = render.render_batch(*zip(*drawn, strict=True), size)
  labels = [[thing.label for thing in graph.things] for graph, _ in drawn]
  boxes = [
      dict(zip(names, placed.boxes, strict=True))
      for names, (_, placed) in zip(labels, drawn, strict=True)
  ]
  return images, labels, boxes


def moved(rng, image, found):
  """A picture u8[S, S, 3] and its boxes, shifted and half the time mirrored.

  Every shape of the world is its own mirror image, so labels stay; nothing
  that was found leaves the picture.
  """
  size = len(image)
  corners = np.stack([*found.values(), np.float32([0.5] * 4)])
  low = np.minimum(corners[:, :2].min(0) * size, _SHIFT).astype(int)
  high = np.minimum((1 - corners[:, 2:].max(0)) * size, _SHIFT).astype(int)
  x, y = rng.integers(-low, high + 1)
  padded = np.pad(image, ((_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)), "edge")
  image = padded[_SHIFT - y :, _SHIFT - x :][:size, :size]
  step = np.float32([x, y, x, y]) / size
  found = {label: box + step for label, box in found.items()}
  if rng.uniform() < 0.5:
    return image, found
  return image[:, ::-1], {
      label: np.float32([1 - x2, y1, 1 - x1, y2])
      for label, (x1, y1, x2, y2) in found.items()
  }
