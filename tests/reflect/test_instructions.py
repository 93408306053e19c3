"""The language of edits: words and back, what is refused, where it acts."""

import itertools

import numpy as np
import pytest

from spatialrl.scenes import grammar, instructions
from spatialrl.scenes.instructions import Instruction

GRAPH = grammar.parse("a red circle left of an orange square")
THING, OTHER = "red circle", "orange square"
ALL = [
    *(
        Instruction(verb, THING, place)
        for verb, place in itertools.product(
            instructions.PLACED, instructions.PLACES
        )
    ),
    Instruction("enlarge", OTHER),
    Instruction("shrink", THING),
    Instruction("swap", THING, other=OTHER),
]


def test_sentences_and_tokens_say_the_same():
  ids = instructions.encode(ALL)
  for told, row in zip(ALL, ids, strict=True):
    assert instructions.parse(str(told)) == told
    assert instructions.decode(row, GRAPH) == told


def test_a_sentence_reads_as_english():
  assert str(ALL[0]) == "move the red circle to the upper left"
  added = Instruction("add", OTHER, ("lower", "centre"))
  assert str(added) == "add an orange square at the lower centre"
  assert str(ALL[-1]) == "swap the red circle and the orange square"


@pytest.mark.parametrize(
    "text, said",
    [
        ("paint the red circle", "does not begin with one of"),
        ("", "does not begin with one of"),
        ("move the red circle", "has 2 words after 'move'"),
        ("move the red circle to the left upper", "has 'left' where"),
        ("swap the red circle and the blue dog", "has 'dog' where"),
        ("shrink the circle red", "has 'circle' where"),
    ],
)
def test_what_is_no_instruction_is_refused(text, said):
  with pytest.raises(ValueError, match=said):
    instructions.parse(text)


def test_an_absent_thing_is_an_error_and_no_instruction():
  absent = Instruction("move", "blue cross", ("upper", "left"))
  with pytest.raises(ValueError, match="names the 'blue cross', which is not"):
    instructions.require_known(absent, GRAPH)
  assert instructions.decode(instructions.encode([absent])[0], GRAPH) is None
  same = Instruction("swap", THING, other=THING)
  with pytest.raises(ValueError, match="swaps a thing with itself"):
    instructions.require_known(same, GRAPH)


def test_the_choices_are_all_that_may_be_said_once():
  choices = instructions.choices(GRAPH)
  assert len(set(choices)) == len(choices) == 2 * 2 * 9 + 2 * 2 + 2
  assert set(ALL) <= set(choices)
  for told in choices:
    instructions.require_known(told, GRAPH)


def test_random_words_are_none_or_an_instruction(rng):
  ids = rng.integers(0, len(instructions.WORDS), (500, instructions.LENGTH))
  assert all(instructions.decode(row, GRAPH) is None for row in ids)


def test_the_region_holds_the_box_and_the_place():
  boxes = {THING: np.float32([0.05, 0.05, 0.3, 0.3])}
  told = Instruction("move", THING, ("lower", "right"))
  region = instructions.region(told, boxes, 4)
  corners = np.zeros((4, 4), bool)
  corners[:2, :2] = corners[2:, 2:] = True
  np.testing.assert_array_equal(region, corners)
  assert not instructions.region(None, boxes, 4).any()
  assert not instructions.region(Instruction("shrink", OTHER), boxes, 4).any()


def test_the_region_of_a_swap_has_room_for_the_larger_thing():
  boxes = {
      THING: np.float32([0.1, 0.1, 0.2, 0.2]),
      OTHER: np.float32([0.6, 0.6, 0.95, 0.95]),
  }
  swap = instructions.region(Instruction("swap", THING, other=OTHER), boxes, 16)
  assert swap[:5, :5].all()
