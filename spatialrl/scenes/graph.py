"""Scene graphs: what a picture shall show, without saying where exactly.

The vocabulary of the embedded world lives here; sentences are made in
`grammar`, positions in `layout`, pixels in `render`.
"""

import dataclasses
import functools
import zlib

COLOURS = {  # RGB in [0, 1]
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.75, 0.15),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.95, 0.90, 0.10),
    "cyan": (0.10, 0.85, 0.90),
    "magenta": (0.90, 0.15, 0.85),
    "orange": (1.00, 0.52, 0.05),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
DIRECTIONS = ("left of", "right of", "above", "below")
OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "larger than": "smaller than",
    "smaller than": "larger than",
    "near": "far from",
    "far from": "near",
}
PREDICATES = (*OPPOSITE, "inside")
MAX_COUNT = 4

# One reading for both directions: "b right of a" is "a left of b".
_CANONICAL = {
    "right of": "left of",
    "below": "above",
    "smaller than": "larger than",
}
_SYMMETRIC = ("near", "far from")


@dataclasses.dataclass(frozen=True)
class Thing:
  """One kind of object in a scene; `count` copies of it are drawn."""

  colour: str
  shape: str
  size: str | None = None
  count: int = 1

  def __post_init__(self):
    _require("colour", self.colour, tuple(COLOURS))
    _require("shape", self.shape, SHAPES)
    _require("size", self.size, (None, *SIZES))
    _require("count", self.count, tuple(range(1, MAX_COUNT + 1)))

  @property
  def label(self):
    """What a detector calls it: colour and shape."""
    return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Relation:
  """`things[subject] predicate things[object]`, e.g. 0 left of 1."""

  subject: int
  predicate: str
  object: int

  def __post_init__(self):
    _require("predicate", self.predicate, PREDICATES)
    if self.subject == self.object:
      raise ValueError(f"relation {self} relates a thing to itself.")

  def flipped(self):
    """The relation that contradicts this one."""
    if self.predicate == "inside":
      return Relation(self.object, "inside", self.subject)
    return dataclasses.replace(self, predicate=OPPOSITE[self.predicate])

  def canonical(self):
    """Equal for two relations that say the same thing of the same pair."""
    first, predicate, second = self.subject, self.predicate, self.object
    if predicate in _CANONICAL:
      first, predicate, second = second, _CANONICAL[predicate], first
    elif predicate in _SYMMETRIC and first > second:
      first, second = second, first
    return first, predicate, second


@dataclasses.dataclass(frozen=True)
class SceneGraph:
  """Things with distinct labels, and relations between single things."""

  things: tuple[Thing, ...]
  relations: tuple[Relation, ...] = ()

  def __post_init__(self):
    labels = [thing.label for thing in self.things]
    if len(set(labels)) != len(labels):
      raise ValueError(f"things {labels} must have distinct labels.")
    for relation in self.relations:
      for index in (relation.subject, relation.object):
        if not 0 <= index < len(labels):
          raise ValueError(
              f"relation {relation} names thing {index}; the scene has"
              f" {len(labels)}."
          )
        if self.things[index].count != 1:
          raise ValueError(
              f"relation {relation} needs single things, but"
              f" {labels[index]!r} has count {self.things[index].count}."
          )

  def triples(self):
    """The relations as (label, predicate, label), canonical, as a set."""
    labels = [thing.label for thing in self.things]
    canonical = (relation.canonical() for relation in self.relations)
    return {(labels[a], p, labels[b]) for a, p, b in canonical}

  def with_one_flipped(self):
    """The graphs in which exactly one relation is contradicted."""
    return [
        dataclasses.replace(
            self,
            relations=(
                *self.relations[:i],
                relation.flipped(),
                *self.relations[i + 1 :],
            ),
        )
        for i, relation in enumerate(self.relations)
    ]

  def in_mention_order(self):
    """The same scene with things numbered as a sentence mentions them."""
    order = []
    for relation in self.relations:
      order += [relation.subject, relation.object]
    order = list(dict.fromkeys([*order, *range(len(self.things))]))
    place = {old: new for new, old in enumerate(order)}
    return SceneGraph(
        tuple(self.things[old] for old in order),
        tuple(
            Relation(place[r.subject], r.predicate, place[r.object])
            for r in self.relations
        ),
    )


@functools.cache
def is_held_out(label_a, label_b):
  """True for the fifth of all unordered label pairs kept for evaluation.

  A held-out pair is never related to each other in training data, in either
  order and by any predicate.
  """
  pair = "|".join(sorted((label_a, label_b)))
  return zlib.crc32(pair.encode()) % 5 == 0


def _require(field, value, allowed):
  if value not in allowed:
    raise ValueError(f"{field} is {value!r}; allowed are {list(allowed)}.")
