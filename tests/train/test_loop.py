"""The online loop around a network of one matrix: bits, programs, counts."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from spatialrl.data import scenes
from spatialrl.io.metrics import without_timings
from spatialrl.records import Conditioning, Signals
from spatialrl.train import draw, needs, online
from spatialrl.train import loop as loops
from spatialrl.train.configs import load_config
from spatialrl.train.prepare import kept_rows

_QUICKSTART = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Linear:
  """A policy of one matrix, for what the loop does whatever the network."""

  family = "scenes"
  latent_shape = (2, 2, 192)
  remat = False

  def init(self):
    return {"pool": 0.1 * normal(1, 192, 192), "words": 0.1 * normal(2, 4, 192)}

  def init_trainable(self, key, base):
    del key
    return jax.tree.map(jnp.array, base)

  def encode(self, base, ids, mask):
    del base
    return Conditioning(
      text=ids[..., None].astype(jnp.float32),
      pooled=jnp.cos(ids[:, :4].astype(jnp.float32)),
      mask=mask,
    )

  def encode_empty(self, base, cond):
    del base
    return jax.tree.map(jnp.zeros_like, cond)

  def start(self, base):
    return base

  def velocity(self, base, trainable, x, t, cond, *, words=None, blocks=()):
    weights = base if trainable is None else trainable
    pooled = (cond.pooled @ weights["words"])[:, None, None]
    v = jnp.tanh(x @ weights["pool"]) + pooled * t[:, None, None, None]
    if words is None:
      return v
    assert blocks
    seen = words.any(-1)[:, None, None] + jnp.abs(x).mean(-1)
    return v, seen / seen.mean((1, 2), keepdims=True)

  def decode(self, base, latents):
    del base
    return latents.reshape(-1, 16, 16, 3)

  def to_latents(self, base, images):
    del base
    return images.reshape(-1, *self.latent_shape)


class Brightness:
  """A judge that likes bright images, the more the larger its one weight."""

  weights = {"gain": np.float32(1)}

  def __call__(self, images, prompts, beside=None):
    del prompts
    # What it has learned, or the trusted images of a judge that compares.
    weights = beside if isinstance(beside, dict) else self.weights
    return self.read(weights, images)

  def encode(self, prompts):
    return np.zeros((2, len(prompts), 6), np.int32)

  def features(self, images, ids, mask):
    del ids, mask
    return images

  def read(self, weights, images):
    score = weights["gain"] * images.mean((1, 2, 3))
    groups = score.reshape(2, -1)
    wins = (groups[:, :, None] > groups[:, None]).astype(jnp.float32)
    places = jnp.abs(images[:, ::8, ::8].mean(-1))
    return Signals(scalar=score, pair=wins, map=places, trusted_map=places / 2)

  def score(self, images, ids, mask, weights=None):
    del ids, mask
    return self.read(weights or self.weights, images).scalar

  def compilations(self):
    return 1


class Failing(Brightness):
  """Scores all images once, and then all but the second one."""

  calls = 0

  def __call__(self, images, prompts, beside=None):
    signals = super().__call__(images, prompts, beside)
    self.calls += 1
    if self.calls == 1:
      return signals
    lost = signals.scalar.at[1].set(-jnp.inf)
    return dataclasses.replace(signals, scalar=lost)


def iterate(config, mesh, iterations, judge=Brightness):
  """(Loop, final state, first window step and metrics of each iteration)."""
  judges = {name: judge() for name in config.aggregate.weights}
  trusted = functools.partial(scenes.renders, 0, size=16)
  loop = loops.Loop(config, mesh, Linear(), judges, trusted=trusted)
  base = Linear().init()
  state, rows = loop.init(base), []
  prompts = ["a red circle left of a blue square"] * 4
  prompts += ["a green cross above a white circle"] * 4
  for step in range(iterations):
    start = int(draw.window_start(config, state.key, step))
    state, values = loop.iterate(
      base, state, prompts, np.zeros(8, np.int32), step
    )
    rows.append({"start": start} | values)
  return loop, state, rows


def test_the_reward_inside_the_gradient_is_the_one_that_was_learned():
  config = config_dict.ConfigDict({
    "objective": {"name": "reward_step"},
    "aggregate": {"weights": {"brightness": 2.0}},
  })
  reward = needs.differentiable(config, {"brightness": Brightness()})
  images = jnp.ones((8, 16, 16, 3))
  learned = {"brightness": {"weights": {"gain": jnp.float32(3)}}}
  np.testing.assert_allclose(reward(images, None, None, {}), 2.0)
  np.testing.assert_allclose(reward(images, None, None, learned), 6.0)


@pytest.fixture
def wide():
  """The smallest quickstart with room for the window to move."""
  config = load_config(_QUICKSTART, "tiny")
  config.aggregate = config_dict.ConfigDict(
    {"name": "weighted_sum", "weights": {"brightness": 1.0}}
  )
  config.rollout.window_range = (0, 6)
  return config


def bits(state):
  """A TrainState that numpy can hold."""
  return jax.device_get(
    dataclasses.replace(state, key=jax.random.key_data(state.key))
  )


def test_two_runs_give_the_same_bits_and_compile_once(wide, mesh):
  loop, state, rows = iterate(wide, mesh, 3)
  _, state2, rows2 = iterate(wide, mesh, 3)
  jax.tree.map(np.testing.assert_array_equal, bits(state), bits(state2))
  assert without_timings(rows) == without_timings(rows2)
  assert len({row["start"] for row in rows}) > 1
  assert set(loop.compilations().values()) == {1}


class Waiting(Brightness):
  """A judge that answers once the rollout of the next iteration is there."""

  loop, met = None, 0

  def __call__(self, images, prompts, beside=None):
    for _, drawn in self.loop._ahead.values():
      jax.block_until_ready(drawn)
      self.met += 1
    return super().__call__(images, prompts)


def test_a_rollout_ahead_meets_the_judges_and_changes_no_bit(wide, mesh):
  wide.behaviour.name = "previous"
  base, judge = Linear().init(), Waiting()
  prompts = ["a red circle left of a blue square"] * 4
  prompts += ["a green cross above a white circle"] * 4

  def run(loop, state, steps, ahead):
    rows, judge.loop = [], loop
    for step in steps:
      state, values = loop.iterate(
        base, state, prompts, np.zeros(8, np.int32), step,
        upcoming=prompts if ahead and step < 3 else None,
      )
      rows.append(without_timings([values])[0])
    return state, rows

  def new():
    return loops.Loop(wide, mesh, Linear(), {"brightness": judge})

  one, other, resumed = new(), new(), new()
  state, in_turn = run(one, one.init(base), range(4), ahead=False)
  assert judge.met == 0
  half, _ = run(other, other.init(base), range(2), ahead=True)
  kept = jax.tree.map(jnp.copy, half)  # as a checkpoint has it
  rest, rows = run(other, half, range(2, 4), ahead=True)
  assert judge.met == 3
  assert rows == in_turn[2:]
  stopped, _ = run(resumed, kept, range(2, 4), ahead=True)
  for tree in (rest, stopped):
    jax.tree.map(np.testing.assert_array_equal, bits(tree), bits(state))
  assert [row["staleness"] for row in in_turn] == [0, 2, 2, 2]
  first, *others = [row["ratio_first_deviation"] for row in in_turn]
  assert first == 0 < min(others)
  assert set(other.compilations().values()) == {1}


def test_a_quarter_from_both_ends_is_half_of_the_update(wide, mesh):
  assert wide.select.k == wide.rollout.group // 4
  _, _, (few,) = iterate(wide, mesh, 1)
  wide.select.name = "all"
  _, _, (all_images,) = iterate(wide, mesh, 1)
  assert all_images["images_updated"] == 8
  assert few["images_updated"] == 4
  assert (few["kept_share"], all_images["kept_share"]) == (0.5, 1.0)


METHODS = sorted(p.stem for p in (_QUICKSTART.parent / "methods").glob("*.py"))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_config_that_compiles_once_and_moves(name, mesh):
  config = load_config(_QUICKSTART.parent / "methods" / f"{name}.py", "tiny")
  online.check(config, mesh)
  config.optimizer.warmup = 0
  loop, state, rows = iterate(config, mesh, 2, Failing)
  assert set(loop.compilations().values()) == {1}
  for row in rows:
    assert all(np.isfinite(value) for value in row.values()), row
  assert rows[1]["failed_scores"] == (config.aggregate.name != "win_rate")
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), state.params, Linear().init()
  )
  assert max(jax.tree.leaves(moved)) > 0
  assert rows[0]["update_calls"] == needs.update_calls(
    config, kept_rows(config)
  )
  assert rows[0]["rollout_calls"] == 8 * config.rollout.steps


@pytest.mark.parametrize("name", ["image_doctor", "srum", "star", "tempflow"])
def test_the_credit_of_a_method_is_not_the_uniform_one(name, mesh):
  config = load_config(_QUICKSTART.parent / "methods" / f"{name}.py", "tiny")
  config.optimizer.warmup = 0
  assert config.credit.name != "uniform"
  own = iterate(config, mesh, 2)[1].params
  config.credit.name = "uniform"
  other = iterate(config, mesh, 2)[1].params
  assert any(
    np.any(a != b)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True)
  )


def test_star_with_alpha_zero_is_uniform_credit_to_the_bit(mesh):
  path = _QUICKSTART.parent / "methods" / "star.py"
  states = []
  for credit in ({"name": "attention_map", "alpha": 0.0}, {"name": "uniform"}):
    config = load_config(path, "tiny")
    config.credit = credit
    states.append(iterate(config, mesh, 2)[1])
  one, other = (jax.tree.leaves(state.params) for state in states)
  for a, b in zip(one, other, strict=True):
    np.testing.assert_array_equal(a, b)
  config = load_config(path, "tiny")
  config.credit.alpha = 0.5
  mapped = jax.tree.leaves(iterate(config, mesh, 2)[1].params)
  assert any(np.any(a != b) for a, b in zip(mapped, one, strict=True))
