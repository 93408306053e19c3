"""The Actor network: an autoregressive policy, and its policy gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import config_dict

from spatialrl.data import tokenizers
from spatialrl.models import actor as actors
from spatialrl.models.reward_model import RewardConfig
from spatialrl.reflect import actors as speakers
from spatialrl.reflect import scenes
from spatialrl.rl.advantage import ADVANTAGES
from spatialrl.scenes import instructions
from spatialrl.train.reflect_grpo import actor_update
from spatialrl.train.slots import bind
from spatialrl.train.state import init_state

PROMPTS = [
    "a red circle left of a blue square, a blue square above a red circle",
    "an orange cross near a white circle, a white circle larger than an orange"
    " cross",
] * 4
ROWS = len(PROMPTS)


@pytest.fixture(scope="module")
def world():
  model = RewardConfig(
      vocabulary=len(tokenizers.load()), size=16, patch=8, max_tokens=27,
      width=16, depth=1, heads=2,
  )
  shapes = jax.eval_shape(lambda k: actors.init(model, k), jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes
  )
  speaker = speakers.Learned(model, params, temperature=1.0)
  images = rng.integers(0, 256, (ROWS, 16, 16, 3), np.uint8)
  said = np.tile(np.float32([0.1, 0.9]), (ROWS, 1))
  context = speaker.context(images, PROMPTS, said)
  return model, params, speaker, context


@pytest.fixture(scope="module")
def score(world):
  model = world[0]
  return jax.jit(lambda *args: actors.log_probs(model, *args))


def test_a_word_is_judged_by_what_comes_before_it(world, score, rng):
  model, params, _, context = world
  words = rng.integers(2, len(instructions.WORDS), (ROWS, instructions.LENGTH))
  other = words.copy()
  other[:, 3:] = (other[:, 3:] + 1) % len(instructions.WORDS)
  (a, _), (b, _) = (score(params, context, w) for w in (words, other))
  np.testing.assert_allclose(a[:, :3], b[:, :3], atol=1e-6)
  assert np.abs(a[:, 4:] - b[:, 4:]).max() > 1e-3


def test_the_verdict_is_seen(world, score):
  model, params, _, context = world
  words = np.full((ROWS, instructions.LENGTH), 2)
  flipped = (*context[:3], 1 - context[3])
  a, b = (score(params, c, words)[0] for c in (context, flipped))
  assert np.abs(a - b).max() > 1e-3


def test_draws_end_with_padding(world):
  _, params, speaker, context = world
  words = np.asarray(speaker.draw(params, context, jax.random.key(0)))
  over = np.cumsum(words == instructions.END, 1) > 0
  after = over[:, :-1]
  assert (words[:, 1:][after] == instructions.PAD).all()


def test_decided_tokens_end_with_the_end():
  words = jnp.array([[2, 1, 0, 0], [2, 3, 4, 5], [0, 1, 1, 0]])
  np.testing.assert_array_equal(
      actors.tokens(words),
      [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]],
  )


def test_the_verdict_of_a_clause_lies_on_its_words():
  rows = speakers.spread(PROMPTS[:1], np.float32([[0.2, 0.7]]))
  ids, mask = tokenizers.encode(
      tokenizers.load(), PROMPTS[:1], scenes.TOKENS
  )
  comma = int(np.flatnonzero(ids[0] == tokenizers.load().get_vocab()[","])[0])
  assert np.all(rows[0, : comma + 1] == np.float32(0.2))
  assert np.all(rows[0, comma + 1 : mask.sum()] == np.float32(0.7))


def test_the_update_makes_what_paid_likelier(world, score):
  model, params, speaker, context = world
  config = config_dict.ConfigDict({
      "updates": 2, "entropy": 0.0, "ema_decay": 0.5,
      "objective": {"name": "ppo_position", "clip_range": 0.2, "adv_clip": 5.0},
      "advantage": {"name": "group_z", "eps": 1e-4},
  })
  optimizer = optax.sgd(0.05)
  advantage = bind(ADVANTAGES, config.advantage, "advantage")
  update = jax.jit(actor_update(model, config, optimizer, advantage))
  words = speaker.draw(params, context, jax.random.key(1))
  group = np.repeat([0, 1], ROWS // 2)
  reward = np.tile(np.float32([1, 0]), ROWS // 2)
  state, values = update(
      init_state(params, optimizer, 0), context, words, reward, group
  )
  said = actors.tokens(words)
  before, after = (
      (score(p, context, words)[0] * said).sum(1) for p in
      (params, state.params)
  )
  gain = np.asarray(after - before)
  assert gain[reward > 0].mean() > 0 > gain[reward == 0].mean()
  # Before the first step every ratio is 1; the mean is over both.
  assert values["ratio"] == pytest.approx(1.0, abs=0.1)
