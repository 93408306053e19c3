"""The update: its ratio, its gradient and its padding."""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import config_dict

from spatialrl.flow import rollout as rollouts
from spatialrl.flow import schedules, transition
from spatialrl.models.mmdit import MMDiTConfig
from spatialrl.models.policy import Policy
from spatialrl.models.text_encoder import TextEncoderConfig
from spatialrl.records import UpdateBatch, map_rows
from spatialrl.rl import anchors, objectives
from spatialrl.train.state import init_state
from spatialrl.train.update import make_update

ROWS, WINDOW, CLIP, ANCHOR, NOISE = 8, 2, 2e-3, 0.3, 0.8
POLICY = Policy(
  size=16,
  fold=8,
  prediction="image",
  mmdit=MMDiTConfig(width=32, depth=2, heads=2, channels=192, remat=False),
  text=TextEncoderConfig(
    vocabulary=12, max_tokens=4, width=32, depth=1, heads=2
  ),
)
SLOTS = types.SimpleNamespace(
  transition=functools.partial(transition.cps, noise_level=NOISE),
  log_prob=transition.gaussian_log_prob,
  objective=functools.partial(
    objectives.OBJECTIVES["ppo"], clip_range=CLIP, adv_clip=5.0
  ),
  prepare=None,
  anchor=anchors.velocity_mse,
  behaviour=None,
)
# Moves nothing; its state is the sum of the gradients it was given.
RECORDER = optax.GradientTransformation(
  lambda params: jax.tree.map(jnp.zeros_like, params),
  lambda grads, state, params: (
    jax.tree.map(jnp.zeros_like, grads),
    jax.tree.map(jnp.add, state, grads),
  ),
)


def recording(updates, microbatch=0):
  """The update with an anchor, not jitted."""
  config = config_dict.ConfigDict(
    {
      "updates": updates,
      "microbatch": microbatch,
      "anchor_weight": ANCHOR,
      "ema_decay": 0.9,
      "ema_every": 1,
    }
  )
  return make_update(POLICY, RECORDER, SLOTS, config, guidance=1.0)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(shapes, scale, seed=0):
  leaves, tree = jax.tree.flatten(shapes)
  return jax.tree.unflatten(
    tree, [scale * normal((seed, i), *x.shape) for i, x in enumerate(leaves)]
  )


@pytest.fixture(scope="module")
def base():
  return filled(jax.eval_shape(POLICY.init, jax.random.key(0)), 0.1)


@pytest.fixture(scope="module")
def batch(base):
  """The rollout of the base, every image kept."""
  ids = np.random.default_rng(1).integers(1, 12, (ROWS, 4)).astype(np.int32)

  @jax.jit
  def roll(base, ids, times, start):
    cond = POLICY.encode(base, ids, ids > 0)
    trajectory = rollouts.rollout(
      lambda x, t: POLICY.velocity(base, base["mmdit"], x, t, cond),
      jax.random.normal(jax.random.key(2), (ROWS, *POLICY.latent_shape)),
      times,
      jax.random.key(3),
      jnp.arange(ROWS) // 4,
      transition=SLOTS.transition,
      log_prob=SLOTS.log_prob,
      window_start=start,
      window=WINDOW,
      last_step="ode",
    )
    return trajectory, cond

  times = schedules.shifted(4, shift=3.0)
  trajectory, cond = roll(base, ids, times, jnp.int32(1))
  return UpdateBatch(
    trajectory=trajectory,
    conditioning=cond,
    ids=jnp.asarray(ids),
    reward=normal(5, ROWS),
    advantage=normal(4, ROWS)[None, :, None, None],
    keep=np.ones(ROWS, bool),
    weight=np.ones((WINDOW, ROWS, 2, 2), np.float32),
    visits=np.arange(WINDOW),
  )


@pytest.fixture(scope="module")
def update():
  """Two optimizer steps, each on its half of the rows; records gradients."""
  return jax.jit(recording(updates=2))


@pytest.fixture(scope="module")
def moved(base):
  """A policy far enough from the rollout's that some ratios are clipped."""
  noise = filled(base["mmdit"], 0.01, seed=1)
  return jax.tree.map(jnp.add, base["mmdit"], noise)


def run(update, base, params, batch):
  state, metrics = update(base, init_state(params, RECORDER, 0), batch)
  return state.opt_state, metrics


def rows_of(batch, rows):
  """An UpdateBatch of some of the rows."""
  return map_rows(
    lambda x, axis: x if axis is None else jnp.take(x, rows, axis), batch
  )


def test_a_policy_that_has_not_moved_has_ratio_exactly_one(
  base, batch, update
):
  """Rollout of 8 rows, gradient of 4: two programs, the same bits."""
  _, metrics = run(update, base, base["mmdit"], batch)
  assert metrics["ratio_first_deviation"] == 0.0
  assert metrics["log_prob_mismatch"] == 0.0
  assert metrics["log_prob_difference"] == 0.0
  assert metrics["ratio"] == metrics["ratio_max"] == 1.0
  assert metrics["grad_norm"] > 1e-3


@jax.jit
def plain_loss(params, base, cond, x, x_next, t, t_next, old, advantage):
  """Sum of the losses of one step, written down a second time."""
  times = jnp.full(len(x), t)
  v, reference = (
    POLICY.velocity(base, weights, x, times, cond)
    for weights in (params, None)
  )
  image, noise = x - t * v, x + (1 - t) * v
  angle = NOISE * math.pi / 2
  mean = (1 - t_next) * image + math.cos(angle) * t_next * noise
  std = math.sin(angle) * t_next
  z = (x_next - mean) / std
  log_prob = -(z**2) / 2 - jnp.log(std * math.sqrt(2 * math.pi))
  ratio = jnp.exp(log_prob.mean((1, 2, 3)) - old.mean((1, 2)))
  surrogate = jnp.minimum(
    ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage
  )
  anchor = ((v - reference) ** 2).mean((1, 2, 3))
  return (ANCHOR * anchor - surrogate).sum()


def test_the_gradient_is_that_of_the_mean_loss_over_kept_rows(
  base, batch, moved, update
):
  keep = ~np.isin(np.arange(ROWS), (2, 5))
  grads, metrics = run(
    update, base, moved, dataclasses.replace(batch, keep=keep)
  )
  loss, expected = 0.0, jax.tree.map(jnp.zeros_like, moved)
  value_and_grad = jax.jit(jax.value_and_grad(plain_loss))
  for rows in ([0, 4, 6], [1, 3, 7]):  # every second row, without the others
    some = rows_of(batch, np.array(rows))
    path = some.trajectory
    for k in range(WINDOW):
      value, grad = value_and_grad(
        moved,
        base,
        some.conditioning,
        path.x[k],
        path.x[k + 1],
        path.t[k],
        path.t[k + 1],
        path.log_prob[k],
        some.advantage[0, :, 0, 0],
      )
      loss += value / (WINDOW * len(rows))
      expected = jax.tree.map(
        lambda e, g: e + g / (WINDOW * 3), expected, grad
      )
  clipped = metrics["clip_high"] + metrics["clip_low"]
  assert 0 < clipped < 1  # both branches of the surrogate are in play
  np.testing.assert_allclose(metrics["loss"], loss / 2, atol=1e-6)
  largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(expected))
  for a, b in zip(
    jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-6 * largest)


def test_padding_rows_carry_no_gradient(base, batch, moved, update):
  """What stands in them changes no bit, with an anchor on every row."""
  keep = np.arange(ROWS) < 6
  first, metrics = run(
    update, base, moved, dataclasses.replace(batch, keep=keep)
  )
  rows = np.where(keep, np.arange(ROWS), 0)  # other images as padding
  other = dataclasses.replace(
    rows_of(batch, rows),
    advantage=np.where(
      keep[None, :, None, None], batch.advantage, 100.0
    ).astype(np.float32),
    keep=keep,
  )
  second, again = run(update, base, moved, other)
  jax.tree.map(np.testing.assert_array_equal, first, second)
  for name in metrics:
    assert metrics[name] == again[name], name
  assert metrics["images_updated"] == 6 and metrics["anchor"] > 0
  everyone, _ = run(update, base, moved, batch)
  assert optax.tree.norm(jax.tree.map(jnp.subtract, first, everyone)) > 1e-4


def test_padding_alone_has_no_gradient(base, batch, moved, update):
  nothing = dataclasses.replace(batch, keep=np.zeros(ROWS, bool))
  grads, metrics = run(update, base, moved, nothing)
  for leaf in jax.tree.leaves(grads):
    np.testing.assert_array_equal(leaf, 0.0)
  assert metrics["images_updated"] == 0 and metrics["loss"] == 0


def test_microbatches_add_up_to_the_whole_step(base, batch, moved, update):
  """Sums over counts, not means of means: parts keep 2, 1 or 0 images."""
  some = dataclasses.replace(batch, keep=~np.isin(np.arange(ROWS), (2, 3, 6)))
  whole, expected = run(update, base, moved, some)
  parts, metrics = run(jax.jit(recording(2, microbatch=2)), base, moved, some)
  largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(whole))
  for a, b in zip(
    jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-6 * largest)
  for name, value in expected.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-5, atol=1e-7, err_msg=name
    )


def test_rows_that_do_not_divide_are_refused(base, batch):
  with pytest.raises(ValueError, match="train.microbatch is 3; .* 8 images"):
    run(recording(1, microbatch=3), base, base["mmdit"], batch)
  with pytest.raises(ValueError, match="train.updates is 3; .* 8 images"):
    run(recording(updates=3), base, base["mmdit"], batch)
