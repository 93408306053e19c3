"""Every policy loss is weighted REINFORCE at the rollout policy, per image."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow import transition
from spatialrl.rl import ppo

B, H, C = 6, 4, 3
T, T_NEXT = jnp.float32(0.8), jnp.float32(0.65)
OPTIONS = {"ppo_guard": {"divide_by_interval": True}}
WHOLE = ["ppo", "ppo_guard"]  # one ratio an image, with its own gradient
# Factor between the gradient and that of plain REINFORCE at the old policy.
FACTOR = {
  "ppo_guard": lambda step: step.std / step.interval,
}


def evaluate(v, x, x_next):
  return transition.evaluate_step(
    lambda x, t: v,
    x,
    x_next,
    T,
    T_NEXT,
    transition=functools.partial(transition.flow_sde, noise_level=0.7),
    log_prob=transition.gaussian_log_prob,
  )


def normal(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.fixture
def case(rng):
  """A rollout of B images, its noise, advantages and a mean-1 credit."""
  x, v, eps = (normal(rng, B, H, H, C) for _ in range(3))
  old = evaluate(v, x, x)
  x_next = old.mean + old.std * eps
  weight = jnp.exp(normal(rng, B, H, H))
  return {
    "v": v,
    "eps": eps,
    "step": lambda v: evaluate(v, x, x_next),
    "old": evaluate(v, x, x_next),
    "advantage": normal(rng, B),
    "weight": weight / jnp.mean(weight, (1, 2), keepdims=True),
  }


def objective(name, **overrides):
  options = {"clip_range": 0.2, "adv_clip": 5.0} | OPTIONS.get(name, {})
  options |= overrides
  return jax.jit(functools.partial(ppo.PPO[name], **options))


def run(name, case, v, advantage=None, **overrides):
  advantage = case["advantage"] if advantage is None else advantage
  old = case["old"]
  return objective(name, **overrides)(
    case["step"](v), old.mean, old.log_prob, advantage, case["weight"]
  )


def gradient(name, case, v, advantage=None, **overrides):
  return jax.grad(
    lambda v: jnp.sum(run(name, case, v, advantage, **overrides)[0])
  )(v)


@pytest.mark.parametrize("name", ppo.PPO)
def test_the_ratio_is_exactly_one_at_the_rollout_policy(name, case):
  loss, metrics = run(name, case, case["v"])
  assert loss.shape == (B,) and loss.dtype == jnp.float32
  np.testing.assert_array_equal(metrics["ratio"], 1.0)
  for key in ("clip_high", "clip_low", "approx_kl"):
    np.testing.assert_array_equal(metrics[key], np.zeros(B, np.float32))


@pytest.mark.parametrize("name", ppo.PPO)
def test_the_gradient_is_weighted_reinforce_at_the_rollout_policy(name, case):
  def reinforce(v):
    log_prob = jnp.mean(case["weight"] * case["step"](v).log_prob, (1, 2))
    return -jnp.sum(case["advantage"] * log_prob)

  factor = FACTOR.get(name, lambda step: 1.0)(case["old"])
  want = factor * jax.grad(reinforce)(case["v"])
  got = gradient(name, case, case["v"])
  np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("name", ppo.PPO)
def test_the_credit_moves_the_gradient(name, case):
  uniform = case | {"weight": jnp.ones_like(case["weight"])}
  weighted = gradient(name, case, case["v"])
  plain = gradient(name, uniform, case["v"])
  np.testing.assert_allclose(
    weighted,
    case["weight"][..., None] * plain,
    atol=1e-6 * np.abs(weighted).max(),
  )


@pytest.mark.parametrize("name", ppo.PPO)
def test_a_zero_advantage_teaches_nothing(name, case, rng):
  v = case["v"] + normal(rng, B, H, H, C)
  zero = jnp.zeros(B)
  np.testing.assert_array_equal(run(name, case, v, zero)[0], 0.0)
  np.testing.assert_array_equal(gradient(name, case, v, zero), 0.0)


@pytest.mark.parametrize("name", ppo.PPO)
def test_advantages_are_clipped(name, case):
  v = 1.01 * case["v"]
  for sign in (1.0, -1.0):
    edge, beyond = jnp.full(B, sign * 2.0), jnp.full(B, sign * 7.0)
    np.testing.assert_array_equal(
      run(name, case, v, beyond, adv_clip=2.0)[0],
      run(name, case, v, edge, adv_clip=2.0)[0],
    )


@pytest.mark.parametrize("name", WHOLE)
def test_gradients_stop_only_where_clipping_is_pessimistic(name, case, rng):
  v = case["v"] + 0.1 * normal(rng, B, H, H, C)
  clip = {"clip_range": 1e-6}
  _, metrics = run(name, case, v, **clip)
  high, low = (np.asarray(metrics[k]) == 1 for k in ("clip_high", "clip_low"))
  assert high.any() and low.any()
  np.testing.assert_array_equal(high, np.asarray(metrics["ratio"]) > 1 + 1e-6)
  np.testing.assert_array_equal(low, np.asarray(metrics["ratio"]) < 1 - 1e-6)
  for sign, stopped in ((1.0, high), (-1.0, low)):
    grad = gradient(name, case, v, jnp.full(B, sign), **clip)
    moving = np.abs(np.asarray(grad)).max((1, 2, 3)) > 0
    np.testing.assert_array_equal(moving, ~stopped)


@pytest.mark.parametrize("name", ppo.PPO)
def test_images_do_not_see_each_other(name, case, rng):
  v = case["v"] + 0.1 * normal(rng, B, H, H, C)
  moved = v.at[1:].add(normal(rng, B - 1, H, H, C))
  loss, metrics = run(name, case, v)
  other_loss, other_metrics = run(name, case, moved)
  np.testing.assert_allclose(other_loss[0], loss[0], rtol=1e-6)
  for key, value in metrics.items():
    assert value.shape == (B,)
    np.testing.assert_allclose(other_metrics[key][0], value[0], rtol=1e-5)
  assert np.all(np.abs(other_loss[1:] - loss[1:]) > 0)


@pytest.mark.parametrize("name", ppo.PPO)
def test_images_may_sit_at_different_steps(name, case, rng):
  v = case["v"] + 0.1 * normal(rng, B, H, H, C)
  new = case["step"](v)
  spread = dataclasses.replace(
    new,
    std=jnp.broadcast_to(new.std, (B, 1, 1, 1)),
    interval=jnp.broadcast_to(new.interval, (B, 1, 1, 1)),
  )
  loss, _ = run(name, case | {"step": lambda v: spread}, v)
  np.testing.assert_allclose(loss, run(name, case, v)[0], rtol=1e-6)


@pytest.mark.parametrize("name", ppo.PPO)
def test_shapes_that_would_broadcast_are_refused(name, case):
  with pytest.raises(ValueError, match=r"advantage has shape \(6, 1\)"):
    run(name, case, case["v"], case["advantage"][:, None])
  with pytest.raises(ValueError, match=r"weight has shape \(1, 4, 4\)"):
    run(name, case | {"weight": case["weight"][:1]}, case["v"])


def test_the_plain_ratio_is_that_of_the_weighted_log_probs(case, rng):
  v = case["v"] + 0.1 * normal(rng, B, H, H, C)
  new, old = case["step"](v), case["old"]
  change = jnp.mean(case["weight"] * (new.log_prob - old.log_prob), (1, 2))
  _, metrics = run("ppo", case, v)
  np.testing.assert_allclose(metrics["ratio"], jnp.exp(change), rtol=1e-6)
  np.testing.assert_allclose(metrics["approx_kl"], change**2 / 2, rtol=1e-5)


def test_the_guard_ratio_is_noise_times_shift(case, rng):
  """log r' = mean(w eps (mean - old mean)), GRPO-Guard's identity."""
  v = case["v"] + 0.3 * normal(rng, B, H, H, C)
  shift = case["step"](v).mean - case["old"].mean
  want = jnp.mean(case["weight"][..., None] * case["eps"] * shift, (1, 2, 3))
  assert np.abs(want).max() > 1e-3
  _, metrics = run("ppo_guard", case, v)
  np.testing.assert_allclose(jnp.log(metrics["ratio"]), want, atol=1e-6)


def test_the_guard_divides_by_the_interval_when_asked(case, rng):
  v = case["v"] + 0.1 * normal(rng, B, H, H, C)
  divided, _ = run("ppo_guard", case, v)
  plain, _ = run("ppo_guard", case, v, divide_by_interval=False)
  np.testing.assert_allclose(divided * (T - T_NEXT), plain, rtol=1e-6)


def test_each_position_is_clipped_alone(case, rng):
  v = case["v"] + 0.1 * normal(rng, B, H, H, C)
  ratio = jnp.exp(case["step"](v).log_prob - case["old"].log_prob)
  grad = gradient("ppo_position", case, v, jnp.ones(B), clip_range=1e-3)
  moving = np.abs(np.asarray(grad)).max(-1) > 0
  np.testing.assert_array_equal(moving, np.asarray(ratio) <= 1 + 1e-3)
  assert 0 < moving.mean() < 1


def test_the_sequence_ratio_has_the_images_value_and_local_gradients(case, rng):
  v = case["v"] + 0.1 * normal(rng, B, H, H, C)
  uniform = case | {"weight": jnp.ones_like(case["weight"])}
  loss, metrics = run("ppo_sequence", uniform, v)
  want, plain = run("ppo", uniform, v)
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  np.testing.assert_allclose(metrics["ratio"], plain["ratio"], rtol=1e-6)
  np.testing.assert_allclose(
    gradient("ppo_sequence", uniform, v), gradient("ppo", uniform, v),
    atol=1e-8,
  )


@pytest.mark.parametrize("name", ["ppo_position", "ppo_sequence"])
def test_positions_may_have_their_own_advantage(name, case, rng):
  own = normal(rng, B, H, H)
  grad = gradient(name, case, case["v"], own)
  plain = gradient(name, case, case["v"], jnp.ones(B))
  np.testing.assert_allclose(
    grad, own[..., None] * plain, atol=1e-6 * np.abs(plain).max()
  )
