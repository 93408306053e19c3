"""At unchanged parameters the ratio is 1 to the last bit, with a gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow import rollout as flow
from spatialrl.flow import schedules, transition

B, H, W, C, D = 6, 8, 8, 3, 32
CASES = {
  "flow_sde": (
    functools.partial(transition.flow_sde, noise_level=0.7),
    transition.gaussian_log_prob,
  ),
  "dance_sde": (
    functools.partial(transition.dance_sde, eta=0.3),
    transition.gaussian_log_prob,
  ),
  "cps": (
    functools.partial(transition.cps, noise_level=0.8),
    transition.residual_log_prob,
  ),
}


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


PARAMS = {
  "enter": 0.5 * normal(1, C, D),
  "mix": 0.3 * normal(2, D, D),
  "exit": 0.3 * normal(3, D, C),
  "time": normal(4, D),
}


def mlp(params, x, t):
  """Gated perceptron with matmuls, a norm and smooth non-linearities."""
  y = x @ params["enter"] + (t[:, None] * params["time"][None])[:, None, None]
  y = jax.nn.gelu(y)
  y = y + jax.nn.silu(y @ params["mix"])
  y = y * jax.lax.rsqrt((y**2).mean(-1, keepdims=True) + 1e-6)
  return (y @ params["exit"]) * jnp.tanh(x)


@functools.partial(jax.jit, static_argnames="case")
def sample(params, start, case):
  kernel, log_prob = CASES[case]
  return flow.rollout(
    functools.partial(mlp, params),
    normal(5, B, H, W, C),
    schedules.sd3(10),
    jax.random.key(0),
    jnp.arange(B) // 2,
    transition=kernel,
    log_prob=log_prob,
    window_start=start,
    window=4,
    last_step="ode",
  )


@functools.partial(jax.jit, static_argnames="case")
def update(params, trajectory, k, case):
  """Value, records.Step, ratio and gradient of a loss on kept step k."""
  kernel, log_prob = CASES[case]

  def loss(params):
    step = transition.evaluate_step(
      transition.repeatable(functools.partial(mlp, params)),
      trajectory.x[k],
      trajectory.x[k + 1],
      trajectory.t[k],
      trajectory.t[k + 1],
      transition=kernel,
      log_prob=log_prob,
    )
    ratio = jnp.exp((step.log_prob - trajectory.log_prob[k]).mean((1, 2)))
    return (ratio * jnp.arange(B)).mean(), (step, ratio)

  (_, (step, ratio)), grad = jax.value_and_grad(loss, has_aux=True)(params)
  return step, ratio, grad


@pytest.mark.parametrize("case", CASES)
def test_a_policy_that_has_not_moved_has_ratio_exactly_one(case):
  """Rollout and gradient are two programs; their log-probs are one number."""
  trajectory = sample(PARAMS, jnp.int32(2), case)
  for k in range(4):
    step, ratio, grad = update(PARAMS, trajectory, k, case)
    np.testing.assert_array_equal(step.mean, trajectory.mean[k])
    np.testing.assert_array_equal(step.log_prob, trajectory.log_prob[k])
    np.testing.assert_array_equal(ratio, 1.0)
    norms = [float(jnp.abs(g).max()) for g in jax.tree.leaves(grad)]
    assert min(norms) > 0 and np.isfinite(norms).all()


def test_gradient_of_the_log_prob_is_the_analytic_one():
  t, t_next = jnp.float32(0.6), jnp.float32(0.4)
  x, x_next, v = normal(1, B, H, W, C), normal(2, B, H, W, C), normal(3, C)

  def total(v):
    step = transition.evaluate_step(
      lambda x, t: jnp.broadcast_to(v[None, None, None], x.shape),
      x,
      x_next,
      t,
      t_next,
      transition=functools.partial(transition.dance_sde, eta=0.3),
      log_prob=transition.gaussian_log_prob,
    )
    return step.log_prob.sum(), step

  (_, step), grad = jax.value_and_grad(total, has_aux=True)(v)
  slope = -(t - t_next) * (1 + 0.3**2 * (1 - t) / (2 * t))
  expected = (x_next - step.mean) / (C * step.std**2) * slope
  np.testing.assert_allclose(grad, expected.sum((0, 1, 2)), rtol=1e-4)
