"""Numbers over images: what counts as right, and as variety."""

import numpy as np
import pytest

from spatialrl.evals import relations
from spatialrl.scenes import grammar, render
from spatialrl.scenes.layout import Layout

_PROMPT = "a red circle left of a blue square"


def picture(red, blue, prompt=_PROMPT):
  """u8[32, 32, 3] with the two things of the prompt at given centres."""
  layout = Layout(
      np.array([red, blue], np.float32),
      np.array([0.14, 0.14], np.float32),
      np.arange(2, dtype=np.int32),
  )
  return render.render(grammar.parse(prompt), layout)


def judge(*images):
  return relations.verdicts([_PROMPT] * len(images), np.stack(images))


def test_summary_counts_objects_relations_and_triples():
  right = picture((0.25, 0.5), (0.75, 0.5))
  wrong = picture((0.75, 0.5), (0.25, 0.5))
  half = picture((0.25, 0.5), (0.75, 0.5), "a red circle left of a red square")
  summary = relations.summary(judge(right, wrong, half, half))
  assert summary == {
      "all_relations": 0.25,
      "per_relation": 0.25,
      "object_recall": 0.75,
      "sg_iou": 0.25,
  }


def test_the_oracle_as_a_reward_is_the_share_of_relations():
  right = picture((0.25, 0.5), (0.75, 0.5))
  wrong = picture((0.75, 0.5), (0.25, 0.5))
  np.testing.assert_array_equal(relations.rewards(judge(right, wrong)), [1, 0])


def test_wrong_layouts_are_no_variety():
  near = picture((0.25, 0.5), (0.75, 0.5))
  other = picture((0.25, 0.3), (0.75, 0.3))
  wrong = picture((0.75, 0.5), (0.25, 0.5))
  prompts = [_PROMPT] * 3
  spread = relations.layout_diversity(judge(near, other, wrong), prompts)
  distance, pairs = spread[_PROMPT]
  assert pairs == 1
  assert distance == pytest.approx(0.2, abs=0.01)
  alone = relations.layout_diversity(judge(near, wrong, wrong), prompts)
  assert alone == {}


def test_relative_diversity_is_one_for_the_reference_and_none_without():
  fresh = {"a": (0.4, 6), "b": (0.2, 6)}
  assert relations.relative_diversity(fresh, fresh) == pytest.approx(1.0)
  ours = {"a": (0.2, 3), "c": (9.0, 6)}
  assert relations.relative_diversity(ours, fresh) == pytest.approx(0.5)
  assert relations.relative_diversity({}, fresh) is None
