"""The chain with parts that do as they are told, and what it returns."""

import jax
import numpy as np
import pytest

from spatialrl.reflect import chain, checker
from spatialrl.scenes.instructions import Instruction
from spatialrl.train.reflect_judges import platt

PROMPTS = [f"prompt {i}" for i in range(5)]
TOLD = Instruction("shrink", "red circle")


def check(images, prompts):
  """The first pixel is the probability in percent; a second relation holds."""
  del prompts
  first = images[:, 0, 0, 0].astype(np.float32) / 100
  return np.stack([first, np.ones_like(first)], 1)


def pictures(*percent):
  images = np.zeros((len(percent), 2, 2, 3), np.uint8)
  images[:, 0, 0, 0] = percent
  return images


class Parts:
  """An actor and an editor that adds a step to the first pixel."""

  def __init__(self, steps):
    self.steps, self.calls, self.tried = list(steps), [], []

  def act(self, images, prompts, probability, boxes, tried, key):
    self.tried.append(tried)
    return [TOLD] * len(prompts)

  def edit(self, images, told, boxes, key, rows):
    self.calls.append(rows.tolist())
    step = self.steps.pop(0)
    edited = images.copy()
    edited[:, 0, 0, 0] = np.clip(edited[:, 0, 0, 0].astype(int) + step, 0, 255)
    return edited, np.ones((len(rows), 1, 1), bool)


def run(images, parts, rounds, batch=5):
  return chain.run(
      images, PROMPTS[: len(images)], check=check, act=parts.act,
      edit=parts.edit, rounds=rounds, key=jax.random.key(0), batch=batch,
      side=1, detect=lambda images, prompts: [{}] * len(prompts),
  )


def test_only_open_images_are_edited_and_in_batches_of_one_shape():
  parts = Parts([30] * 5)
  done = run(pictures(10, 80, 30, 45, 60), parts, rounds=2, batch=2)
  # Round 1: rows 0, 2, 3 are open; round 2: row 0 alone.
  assert parts.calls == [[0, 2], [3, 3], [0, 0]]
  assert done[-1].edits.tolist() == [2, 0, 1, 1, 0]
  assert done[-1].image[:, 0, 0, 0].tolist() == [70, 80, 60, 75, 60]
  assert [t is not None for t in done[2].told] == [True] + [False] * 4


def test_the_best_image_is_returned_and_what_rounds_start_from():
  parts = Parts([10, -25, 5, -1])
  done = run(pictures(30), parts, rounds=4)
  assert [r.image[0, 0, 0, 0] for r in done] == [30, 40, 15, 45, 44]
  assert [r.best.tolist() for r in done] == [[0], [1], [1], [3], [3]]
  final = chain.returned([r.image for r in done], done[-1].best)
  assert final[0, 0, 0, 0] == 45
  # What did not better the image is remembered, until one does.
  assert [rows[0] for rows in parts.tried] == [[], [], [TOLD], []]


def test_every_image_is_told_what_was_tried_on_it():
  parts = Parts([0] * 4)

  def act(images, prompts, probability, boxes, tried, key):
    parts.tried.append(tried)
    return [Instruction("shrink", prompt) for prompt in prompts]

  parts.act = act
  run(pictures(10, 80, 30, 20), parts, rounds=2, batch=2)
  a, c, d = ([Instruction("shrink", PROMPTS[i])] for i in (0, 2, 3))
  # Row 1 is accepted; row 3 fills a batch of its own, twice.
  assert parts.tried == [[[], []], [[], []], [a, c], [d, d]]


def test_an_edit_that_gains_nothing_does_not_replace_the_image():
  done = run(pictures(30), Parts([0]), rounds=1)
  assert done[1].best.tolist() == [0]


def test_zero_rounds_return_what_was_drawn():
  parts = Parts([])
  done = run(pictures(10, 90), parts, rounds=0)
  assert len(done) == 1 and not parts.calls
  assert done[0].probability[:, 0].tolist() == pytest.approx([0.1, 0.9])


def test_negative_rounds_are_refused():
  with pytest.raises(ValueError, match="rounds is -1; it must be 0 or more"):
    run(pictures(10), Parts([]), rounds=-1)


def test_unknown_relations_are_no_reason_to_edit():
  probability = np.array([[0.9, np.nan], [0.9, 0.4]], np.float32)
  assert checker.accepted(probability).tolist() == [True, False]
  assert checker.score(probability) == pytest.approx([0.9, 0.65])


def test_calibration_of_a_sure_and_of_a_calibrated_checker(rng):
  truth = rng.uniform(size=4000) < 0.3
  sure = checker.calibration(truth.astype(np.float32), truth)
  assert sure == {"balanced_accuracy": 1.0, "calibration_error": 0.0}
  chance = rng.uniform(size=4000)
  fair = checker.calibration(chance, rng.uniform(size=4000) < chance)
  assert fair["calibration_error"] < 0.04
  assert fair["balanced_accuracy"] == pytest.approx(0.75, abs=0.03)
  shy = checker.calibration(np.where(truth, 0.6, 0.4), truth)
  assert shy["calibration_error"] == pytest.approx(0.4)


def test_platt_finds_scale_and_shift(rng):
  logit = rng.normal(size=20000)
  truth = rng.uniform(size=20000) < 1 / (1 + np.exp(-(2 * logit - 1)))
  scale, shift = platt(25 + 7 * logit, truth)
  np.testing.assert_allclose([7 * scale, 25 * scale + shift], [2, -1], atol=0.1)
