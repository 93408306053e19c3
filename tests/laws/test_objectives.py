"""Objectives on pairs and through the reward, on a linear velocity field."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import (
  BASE,
  CPS,
  DRAWS,
  GROUP,
  MOVED,
  STEPS,
  C,
  M,
  field,
  judge,
  look,
  rolled,
  value,
  with_advantage,
)

from spatialrl.flow import transition
from spatialrl.rl import forward, objectives, pairwise
from spatialrl.rl.view import View


@pytest.fixture(scope="module")
def noisy():
  return rolled(CPS, 3, "ode")


@pytest.fixture(scope="module")
def smooth():
  return rolled(transition.ode, STEPS, "noise")


@pytest.mark.parametrize("name", ["dpo", "d3po"])
def test_pairs_at_the_reference_have_the_gradient_of_reinforce(name, noisy):
  """-log sigmoid has slope -1/2 at 0: each pair pushes its two apart."""
  settings = {"dpo": DRAWS | {"beta": 4.0},
              "d3po": {"beta": 2.0, "clip_range": 0.5}}[name]
  got = jax.grad(lambda w: value(name, w, noisy, **settings))(BASE)
  wins = pairwise.pairs(noisy.reward, GROUP, noisy.keep)
  pull = (wins.sum(1) - wins.sum(0)) / wins.sum()

  def statistic(weights):
    if name == "d3po":
      step = look(weights, noisy).step(0)
      return step.log_prob.mean((1, 2)) * 2.0
    x_t, t, target = forward.noised(
      noisy.trajectory.final, jax.random.key(3), 0, group=GROUP, **DRAWS
    )
    error = forward.flow_error(field(weights)(x_t, t), target)
    return -error.mean((1, 2)) * 2.0

  want = -0.5 * jax.grad(lambda w: jnp.sum(pull * statistic(w)))(BASE)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
  assert np.abs(want).max() > 1e-3


def test_rank_weights_of_two_images_are_one_factor_a_pair():
  reward = jnp.float32([0.9, 0.2, 0.1, 0.7])
  group = jnp.int32([0, 0, 1, 1])
  keep = jnp.ones(4, bool)
  wins = pairwise.pairs(reward, group, keep)
  weights = pairwise.rank_weights(reward, group, keep)
  discount = 1 / np.log(2) - 1 / np.log(3)
  np.testing.assert_allclose(
    weights[0, 1], (2**0.9 - 2**0.2) * discount, rtol=1e-5
  )
  np.testing.assert_array_equal(weights > 0, wins > 0)
  u = jnp.float32([0.3, -0.1, 0.2, 0.4])
  loss, _ = pairwise.pair_loss(u, weights, u.shape[0], beta=2.0)
  a, b = weights[0, 1], weights[3, 2]
  want = (a * np.log1p(np.exp(-0.8)) + b * np.log1p(np.exp(-0.4))) / (a + b)
  np.testing.assert_allclose(loss.mean(), want, rtol=1e-5)


def test_prdp_has_no_loss_exactly_at_the_gibbs_policy(rng):
  """A tabular policy over 6 outcomes: log p = log p_ref + r / beta + const."""
  reward = jnp.asarray(rng.normal(size=6), jnp.float32)
  one = jnp.zeros(6, jnp.int32)
  beta = 0.5
  gibbs = jax.nn.log_softmax(reward / beta)
  args = (reward, one, jnp.ones(6, bool))
  gradient, loss = pairwise.prdp_coefficients(
    gibbs, gibbs, *args, beta=beta, clip=10.0
  )
  np.testing.assert_allclose(loss, 0.0, atol=1e-5)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-5)

  def descend(logits, _):
    def total(logits):
      u = jax.nn.log_softmax(logits)
      return pairwise.prdp_coefficients(
        u, u, *args, beta=beta, clip=10.0
      )[1].mean()

    return logits - 0.5 * jax.grad(total)(logits), None

  found, _ = jax.lax.scan(descend, jnp.zeros(6), None, length=2000)
  np.testing.assert_allclose(jax.nn.log_softmax(found), gibbs, atol=1e-5)


def test_prdp_visits_add_up_to_the_gradient_of_the_square(noisy):
  settings = {"beta": 0.3, "clip": 100.0}

  def direct(weights):
    total = 0.0
    for k in range(3):
      view = look(weights, noisy)
      change = view.step(k).log_prob - view.step(k, "reference").log_prob
      total = total + change.mean((1, 2))
    wins = pairwise.pairs(noisy.reward, GROUP, noisy.keep)
    both = wins + wins.T
    gap = 0.3 * (total[:, None] - total[None])
    gap = gap - (noisy.reward[:, None] - noisy.reward[None])
    return jnp.sum(both * gap**2) / both.sum()

  view = look(MOVED, noisy)
  prepared = objectives.prepare_prdp(view, **settings)
  batch = with_advantage(noisy, prepared[0, :, 0, 0])
  got = jax.grad(
    lambda w: sum(value("prdp", w, batch, k, **settings) for k in range(3)) / 3
  )(MOVED)
  np.testing.assert_allclose(got, jax.grad(direct)(MOVED), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_reward_chain_agrees_with_finite_differences(steps, smooth):
  settings = {"draws": 1, "gradient_steps": steps, "random_start": False}
  with jax.enable_x64(True):
    exact = jax.tree.map(
      lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x,
      (smooth, MOVED, jax.random.normal(jax.random.key(4), (C, C))),
    )
    batch, weights, direction = exact
    loss = jax.jit(lambda w: value("reward_chain", w, batch, **settings))
    slope = float((jax.grad(loss)(weights) * direction).sum())
    h = 1e-5
    ahead, behind = (loss(weights + s * h * direction) for s in (1, -1))
    difference = float(ahead - behind) / (2 * h)
  assert abs(slope) > 1e-3
  assert abs(difference - slope) < 1e-3 * abs(slope)


def test_the_whole_chain_is_the_sampler(smooth):
  path = smooth.trajectory
  settings = {"draws": 1, "gradient_steps": STEPS, "random_start": False}
  got = value("reward_chain", BASE, smooth, **settings)
  np.testing.assert_allclose(got, -judge(path.final).mean(), rtol=1e-5)


def test_a_random_start_cuts_the_gradient(smooth):
  settings = {"draws": 1, "gradient_steps": STEPS, "random_start": True}
  view = look(MOVED, smooth)
  gradients = []
  for seed in range(6):
    gradients.append(jax.grad(
      lambda w, seed=seed: objectives.reward_chain(
        look(w, smooth), 0, jax.random.key(seed), **settings
      )[0].mean()
    )(MOVED))
  assert len({round(float(jnp.abs(g).sum()), 6) for g in gradients}) > 1
  objectives.reward_chain(view, 0, jax.random.key(0), **settings)
  assert view.calls == STEPS


def test_memory_of_the_chain_grows_slower_than_its_steps(smooth):
  wide = 128

  def deep(weights):
    def velocity(x, t):
      hidden = x
      for _ in range(8):  # what a network keeps for its gradient
        hidden = jnp.tanh(hidden @ weights)
      return hidden * t[:, None, None, None]

    return velocity

  def peak(steps):
    path = dataclasses.replace(
      smooth.trajectory,
      x=jnp.zeros((steps + 1, 64, 8, 8, wide)),
      t=jnp.linspace(1.0, 0.0, steps + 1),
    )
    batch = dataclasses.replace(smooth, trajectory=path)

    def loss(weights):
      view = View(
        {"new": deep(weights)}, batch, transition=transition.ode,
        log_prob=None, judge=lambda x: x.mean((1, 2, 3)),
      )
      return objectives.reward_chain(
        view, 0, None, draws=1, gradient_steps=steps, random_start=False
      )[0].sum()

    lowered = jax.jit(jax.grad(loss)).lower(jnp.zeros((wide, wide)))
    return lowered.compile().memory_analysis().temp_size_in_bytes

  assert peak(16) < 2.5 * peak(4)


def test_the_predicted_reward_is_that_of_one_euler_step_to_the_end(smooth):
  path = smooth.trajectory
  loss, metrics, _ = objectives.reward_step(look(MOVED, smooth), 2, None)
  t = path.t[2]
  x0 = path.x[2] - t * field(MOVED)(path.x[2], jnp.full(M, t))
  np.testing.assert_allclose(metrics["predicted_reward"], judge(x0), rtol=1e-5)
  np.testing.assert_allclose(loss, -judge(x0), rtol=1e-5)
