"""Judges that learn during a run, on a judge of one matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from spatialrl.records import Signals
from spatialrl.rewards import refresh
from spatialrl.train.slots import bind

ROWS = 8
PROMPTS = ["a red circle left of a blue square"] * ROWS
GROUP = jnp.arange(ROWS) // 4
STEPS = {"every": 3, "steps": 40, "learning_rate": 0.1}


class Matrix:
  """Scores a linear feature of the image; its two weights can learn."""

  weights = {"w": np.zeros(2, np.float32)}

  def encode(self, prompts):
    return np.zeros((2, len(prompts), 6), np.int32)

  def features(self, images, ids, mask):
    del ids, mask
    return images.mean((1, 2))[:, :2]

  def read(self, weights, seen):
    score = seen @ weights["w"]
    return Signals(scalar=score, map=jnp.tile(score[:, None, None], (1, 2, 2)))

  def __call__(self, images, prompts, weights=None):
    del prompts
    return self.read(weights or self.weights, self.features(images, 0, 0))


class Red(Matrix):
  """A frozen expert: the more red, the better."""

  weights = {"w": np.array([1, 0], np.float32)}


def images(seed):
  noise = np.random.default_rng(seed).normal(size=(ROWS, 1, 1, 3))
  return jnp.asarray(np.broadcast_to(noise, (ROWS, 2, 2, 3)), jnp.float32)


def made(name, **settings):
  rewards = {"relations": {}, "adversarial": {}, "spatial_score": {}}
  config = config_dict.ConfigDict(
    {"rewards": rewards, "refresh": {"name": name} | settings}
  )
  entry = bind(refresh.REFRESHES, config.refresh, "refresh")
  judges = {
    "relations": Matrix(), "adversarial": Matrix(), "spatial_score": Red()
  }
  return refresh.Refresh(config, entry, judges), judges


def taught(teach, own, trusted, judges):
  signals = {"spatial_score": judges["spatial_score"](own, PROMPTS)}
  learned, metrics = teach(
    teach.init(), PROMPTS, GROUP, own, trusted, signals
  )
  return learned, jax.device_get(metrics)


def test_a_judge_takes_over_the_ranking_of_its_expert():
  teach, judges = made(
    "iterative_reward", experts={"relations": "spatial_score"}, **STEPS
  )
  own, trusted = images(1), images(2)
  learned, metrics = taught(teach, own, trusted, judges)
  assert metrics["refresh_relations_accuracy"] == 0  # it started indifferent
  assert metrics["refresh_relations_loss"] == pytest.approx(np.log(2))
  assert metrics["refresh_relations_loss_after"] < 0.5
  w = learned["relations"]["weights"]["w"]
  assert w[0] > 3 * abs(w[1])
  assert set(learned) == {"relations"}
  assert teach.compilations() == {"refresh_relations": 1}


def test_the_trusted_images_are_the_better_ones_where_the_config_says():
  teach, judges = made(
    "iterative_reward", experts={"relations": "trusted"}, **STEPS
  )
  own = images(1)
  learned, _ = taught(teach, own, own.at[..., 1].add(1.0), judges)
  w = learned["relations"]["weights"]["w"]
  assert w[1] > 3 * abs(w[0])


def test_the_discriminator_stops_at_the_margin():
  longer = STEPS | {"steps": 300}
  teach, judges = made("adversarial", patch_weight=0.3, **longer)
  own = images(1)
  own, trusted = (own.at[..., 1].add(shift) for shift in (-4.0, 4.0))
  learned, metrics = taught(teach, own, trusted, judges)
  assert metrics["refresh_adversarial_loss"] == pytest.approx(1.3)
  assert metrics["refresh_adversarial_loss_after"] < 0.01
  assert float(jnp.abs(learned["adversarial"]["weights"]["w"]).max()) < 2


def test_it_is_due_at_the_end_of_every_round():
  teach, _ = made("iterative_reward", experts={"relations": "trusted"}, **STEPS)
  assert [s for s in range(9) if teach.due(s)] == [2, 5, 8]
  fixed, _ = made("fixed")
  assert fixed.init() == {} and not any(fixed.due(s) for s in range(9))


def test_what_the_expert_failed_to_score_is_no_rank():
  rank = jnp.asarray([2.0, -jnp.inf, 1.0, 0.0])
  group = jnp.zeros(2, jnp.int32)

  def loss(scores):
    own, there = (Signals(scalar=part) for part in jnp.split(scores, 2))
    entry = refresh.iterative_reward
    return entry(
      own, there, rank, group, experts={}, every=1, steps=1, learning_rate=0.1
    )[0]

  gradient = np.asarray(jax.grad(loss)(jnp.zeros(4)))
  assert gradient[1] == 0 and gradient[0] < 0 < gradient[3]
