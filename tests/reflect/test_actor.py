"""The Actor network: an autoregressive policy, and its policy gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import config_dict

from spatialrl.models import actor as actors
from spatialrl.reflect import actors as speakers
from spatialrl.rl.advantage import ADVANTAGES
from spatialrl.scenes import grammar, instructions
from spatialrl.train.reflect_grpo import actor_update
from spatialrl.train.slots import bind
from spatialrl.train.state import init_state

PROMPTS = [
    "a red circle left of a blue square, a blue square above a red circle",
    "an orange cross near a white circle",
] * 4
ROWS = len(PROMPTS)


class Seen:
  """A Checker that sees everything in one corner."""

  def sight(self, images, prompts):
    rows = len(prompts)
    return np.full((rows, 2), 0.9, "f4"), np.full((rows, 2, 4), 0.2, "f4")


@pytest.fixture(scope="module")
def world():
  model = actors.ActorConfig(size=16, patch=8, width=16, depth=1, heads=2)
  shapes = jax.eval_shape(lambda k: actors.init(model, k), jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes
  )
  speaker = speakers.Learned(model, params, Seen(), temperature=1.0)
  images = rng.integers(0, 256, (ROWS, 16, 16, 3), np.uint8)
  said = np.tile(np.float32([[0.1, 0.9], [0.1, np.nan]]), (ROWS // 2, 2))
  context = speaker.context(images, PROMPTS, said)
  return model, params, speaker, context


@pytest.fixture(scope="module")
def said(world):
  """Two instructions of each row, i32[ROWS, LENGTH]: of the first thing."""
  choices = world[3].choices
  return choices[:, 0], choices[:, 1]


@pytest.fixture(scope="module")
def score(world):
  model = world[0]
  return jax.jit(lambda *args: actors.log_probs(model, *args))


def test_a_word_is_judged_by_what_comes_before_it(world, score, said):
  model, params, _, context = world
  words, other = said  # they part at the column, the last word
  assert (words[:, :4] == other[:, :4]).all() and (words != other).any()
  (a, _), (b, _) = (score(params, context, w) for w in (words, other))
  np.testing.assert_allclose(a[:, :4], b[:, :4], atol=1e-6)
  assert np.abs(a[:, 4] - b[:, 4]).max() > 1e-3


@pytest.mark.parametrize("field", ["verdict", "sight", "images", "predicates"])
def test_what_is_known_is_seen(world, score, said, field):
  _, params, _, context = world
  value = getattr(context, field)
  changed = np.where(value >= 0, 1 - value, value).astype(value.dtype)
  other = context._replace(**{field: changed})
  a, b = (score(params, c, said[0])[0] for c in (context, other))
  assert np.abs(a - b).max() > 1e-3


def test_relations_beyond_those_of_a_prompt_change_nothing(world, score, said):
  _, params, _, context = world
  padded = context.predicates < 0
  assert padded[1].sum() == 3
  other = context._replace(verdict=np.where(padded, 0, context.verdict))
  for a, b in zip(*(score(params, c, said[0]) for c in (context, other)),
                  strict=True):
    np.testing.assert_array_equal(a, b)


def test_every_draw_is_an_instruction_about_the_prompt(world):
  _, params, speaker, context = world
  for key in range(4):
    words = speaker.draw(params, context, jax.random.key(key))
    assert None not in speakers.read(words, PROMPTS)


def test_what_was_tried_in_vain_is_not_said_again(world):
  model, params, _, context = world
  speaker = speakers.Learned(model, params, Seen(), temperature=0.0)
  images = np.uint8(127.5 * (context.images + 1))
  tried, said = [[] for _ in PROMPTS], context.verdict
  every = instructions.choices(grammar.parse(PROMPTS[0]))
  for _ in every:
    for row, told in zip(
        tried, speaker(images, PROMPTS, said, None, tried, jax.random.key(0)),
        strict=True,
    ):
      assert told not in row
      row.append(told)
  assert set(tried[0]) == set(every)
  again = speaker(images, PROMPTS, said, None, tried, jax.random.key(0))
  assert again[0] in every  # all were tried: better one of them than none


def test_sharper_logits_are_a_lower_temperature(world, score, said):
  _, params, _, context = world
  chosen, spread = score(params, context, said[0])
  by_two, less = score(actors.sharpened(params, 2.0), context, said[0])
  assert (less <= spread + 1e-6).all() and less.mean() < spread.mean()
  # Log-odds double: compare the last words, where the two part.
  other, _ = score(params, context, said[1])
  doubled, _ = score(actors.sharpened(params, 2.0), context, said[1])
  np.testing.assert_allclose(
      by_two - doubled, 2 * (chosen - other), atol=1e-4
  )


def test_the_choices_share_all_the_probability(world, score):
  _, params, _, context = world
  total = 0
  for k in range(context.choices.shape[1]):
    words = context.choices[:, k]
    told = np.asarray(score(params, context, words)[0] * actors.tokens(words))
    total += np.exp(told.sum(1))
  np.testing.assert_allclose(total, 1, atol=1e-5)


def test_decided_tokens_end_with_the_end():
  words = jnp.array([[2, 1, 0, 0], [2, 3, 4, 5], [0, 1, 1, 0]])
  np.testing.assert_array_equal(
      actors.tokens(words),
      [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]],
  )


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
