"""Edit instructions: what is done, to which thing, where; words and back.

    instruction = ("move" | "add") thing place
                | ("enlarge" | "shrink") thing
                | "swap" thing thing
    thing       = colour shape
    place       = ("upper" | "middle" | "lower") ("left" | "centre" | "right")

The grammar is ours: RL-RIG's Actor writes free text, of which only "move X to
Y" is known, from a summary of others. Sentences add articles and prepositions,
which carry nothing and are not tokens.
"""

import dataclasses
import itertools

import numpy as np

from spatialrl.scenes import graph as graphs
from spatialrl.scenes.layout import coverage

ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
PLACES = tuple((row, column) for row in ROWS for column in COLUMNS)
CENTRES = (0.2, 0.5, 0.8)  # of columns and rows, as shares of the side
VERBS = ("move", "add", "enlarge", "shrink", "swap")
PLACED = ("move", "add")  # verbs that take a place
PAD, END = 0, 1
WORDS = (
    "[PAD]", "[END]", *VERBS, *graphs.COLOURS, *graphs.SHAPES, *ROWS, *COLUMNS
)
LENGTH = 6  # tokens of the longest instruction, its end included
REACH = 0.17  # half the side of what may be drawn at a place
_IDS = {word: i for i, word in enumerate(WORDS)}
_FILLERS = ("the", "a", "an", "to", "at", "and")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One edit.

  Attributes:
    verb: one of VERBS.
    thing: label of what it is done to, "colour shape".
    place: (row, column) for verbs of PLACED, else None.
    other: label of what "swap" exchanges it with, else None.
  """

  verb: str
  thing: str
  place: tuple[str, str] | None = None
  other: str | None = None

  def __str__(self):
    place = " ".join(self.place or ())
    if self.verb == "move":
      return f"move the {self.thing} to the {place}"
    if self.verb == "add":
      article = "an" if self.thing[0] in "aeiou" else "a"
      return f"add {article} {self.thing} at the {place}"
    if self.verb == "swap":
      return f"swap the {self.thing} and the {self.other}"
    return f"{self.verb} the {self.thing}"

  def words(self):
    """The words that are tokens, without the end."""
    other = (self.other or "").split()
    return (self.verb, *self.thing.split(), *(self.place or ()), *other)


def parse(text):
  """Reads an instruction.

  Args:
    text: str, articles and prepositions as in a sentence or left out.

  Returns:
    Instruction; `parse(str(i)) == i`.

  Raises:
    ValueError: naming the word that is not of the grammar.
  """
  words = [word for word in text.split() if word not in _FILLERS]
  if not words or words[0] not in VERBS:
    raise ValueError(
        f"instruction {text!r} does not begin with one of {list(VERBS)}."
    )
  verb, rest = words[0], words[1:]
  kinds = [tuple(graphs.COLOURS), graphs.SHAPES]
  if verb in PLACED:
    kinds += [ROWS, COLUMNS]
  elif verb == "swap":
    kinds += kinds
  if len(rest) != len(kinds):
    raise ValueError(
        f"instruction {text!r} has {len(rest)} words after {verb!r};"
        f" {len(kinds)} are needed."
    )
  for word, allowed in zip(rest, kinds, strict=True):
    if word not in allowed:
      raise ValueError(
          f"instruction {text!r} has {word!r} where one of {list(allowed)} is"
          " needed."
      )
  thing, tail = " ".join(rest[:2]), rest[2:]
  if verb == "swap":
    return Instruction(verb, thing, other=" ".join(tail))
  return Instruction(verb, thing, tuple(tail) or None)


def require_known(instruction, graph):
  """Raises ValueError unless the things of an instruction are of the graph."""
  labels = [thing.label for thing in graph.things]
  for label in (instruction.thing, instruction.other):
    if label is not None and label not in labels:
      raise ValueError(
          f"instruction {str(instruction)!r} names the {label!r}, which is not"
          f" in the prompt; its things are {labels}."
      )
  if instruction.thing == instruction.other:
    raise ValueError(
        f"instruction {str(instruction)!r} swaps a thing with itself."
    )


def choices(graph):
  """Every instruction about the things of a graph, a list."""
  labels = [thing.label for thing in graph.things]
  placed = itertools.product(PLACED, labels, PLACES)
  sized = itertools.product(("enlarge", "shrink"), labels)
  swaps = itertools.permutations(labels, 2)
  return [
      *(Instruction(verb, label, place) for verb, label, place in placed),
      *(Instruction(verb, label) for verb, label in sized),
      *(Instruction("swap", a, other=b) for a, b in swaps),
  ]


def encode(instructions):
  """Token ids i32[B, LENGTH]; END after the last word, then PAD."""
  ids = np.full((len(instructions), LENGTH), PAD, np.int32)
  for row, instruction in zip(ids, instructions, strict=True):
    words = [_IDS[word] for word in instruction.words()]
    row[: len(words) + 1] = [*words, END]
  return ids


def decode(ids, graph):
  """What a row of token ids says, i32[LENGTH].

  Returns:
    Instruction, or None where the words are not of the grammar or name a
    thing that is not of the graph.
  """
  ids = list(ids)
  end = ids.index(END) if END in ids else len(ids)
  try:
    found = parse(" ".join(WORDS[i] for i in ids[:end]))
    require_known(found, graph)
  except ValueError:
    return None
  return found


def centre(place):
  """(x, y) of a place, as shares of the image's side."""
  row, column = place
  return CENTRES[COLUMNS.index(column)], CENTRES[ROWS.index(row)]


def region(instruction, boxes, side):
  """Where an edit may change the picture.

  Args:
    instruction: Instruction, or None, which may change nothing.
    boxes: dict from label to f32[4] of what was found, shares of the side;
      the region holds what is named and was found, and the place.
    side: cells a side of the grid.

  Returns:
    bool[side, side].
  """
  if instruction is None:
    return np.zeros((side, side), bool)
  found = [
      _grown(instruction.verb, boxes[label])
      for label in (instruction.thing, instruction.other)
      if label in boxes
  ]
  if instruction.verb == "swap":  # what comes may be larger than what goes
    half = max(((b[2:] - b[:2]).max() / 2 for b in found), default=0)
    found = [_square((b[:2] + b[2:]) / 2, half) for b in found]
  if instruction.place is not None:
    found.append(_square(np.array(centre(instruction.place)), REACH))
  if not found:
    return np.zeros((side, side), bool)
  # A box that only grazes a cell does not open it.
  return coverage(np.stack(found), side) > 0.02


def _grown(verb, box):
  if verb != "enlarge":
    return np.asarray(box, np.float32)
  return _square((box[:2] + box[2:]) / 2, 0.20)


def _square(middle, half):
  return np.concatenate([middle - half, middle + half]).astype(np.float32)
