"""Scenes of two things, and the edit triples made from them."""

import numpy as np
import pytest

from spatialrl.evals import edits, relations
from spatialrl.reflect import editing, scenes, triples
from spatialrl.scenes import grammar, instructions
from spatialrl.scenes.graph import is_held_out


@pytest.mark.parametrize("number", scenes.RELATIONS)
def test_pictures_show_what_is_stated(number):
  images, captions = scenes.captioned(
      0, number, 24, size=32, relations=(number,), wrong_share=0.0
  )
  assert relations.summary(relations.verdicts(captions, images)) == {
      "all_relations": 1.0, "per_relation": 1.0, "object_recall": 1.0,
      "sg_iou": 1.0,
  }
  assert {len(grammar.parse(c).relations) for c in captions} == {number}


def test_a_wrong_caption_is_wrong_in_one_relation():
  images, captions = scenes.captioned(
      0, 0, 24, size=32, relations=(4,), wrong_share=1.0
  )
  for _, _, verdict in relations.verdicts(captions, images):
    assert sum(verdict.relations) == 3


def test_prompts_keep_to_their_split_and_to_their_beginning():
  training, held_out = (
      scenes.prompts(0, 40, held_out=split) for split in (False, True)
  )
  for prompts, split in ((training, False), (held_out, True)):
    for prompt in prompts:
      a, b = (thing.label for thing in grammar.parse(prompt).things)
      assert is_held_out(a, b) == split
      assert grammar.prompt(grammar.parse(prompt)) == prompt
  assert scenes.prompts(0, 10) == training[:10]


def test_a_pair_cannot_state_five_relations(rng):
  with pytest.raises(ValueError, match="allowed are 1 to 4"):
    scenes.draw(rng, 1, relations=(5,))


@pytest.fixture(scope="module")
def drawn():
  return triples.draw(0, 0, 64, size=32, side=4)


def test_the_target_shows_what_was_told(drawn):
  before = editing.found_boxes(drawn.source)
  after = editing.found_boxes(drawn.target)
  told = [
      instructions.parse(" ".join(
          instructions.WORDS[i] for i in row if i > instructions.END
      ))
      for row in drawn.ids
  ]
  assert {t.verb for t in told} == set(instructions.VERBS)
  for row, found, wanted in zip(told, before, after, strict=True):
    assert edits.followed(row, found, wanted), row
    if row.verb == "add":
      assert row.thing not in found


def test_nothing_changes_outside_of_the_region(drawn):
  error = edits.outside_error(drawn.target, drawn.source, drawn.region)
  # A jittered box may miss the blurred rim of a thing.
  assert np.mean(error > 1e-3) < 0.1
  assert 0.2 < drawn.region.mean() < 0.5
