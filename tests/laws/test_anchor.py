"""Every anchor is zero at the reference and never negative."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow import transition
from spatialrl.rl import anchors

B, H, C = 5, 4, 3
T, T_NEXT, A = 0.8, 0.65, 0.7
# Those that compare transitions; the others compare weights or ask a view.
STEPWISE = sorted(
  set(anchors.ANCHORS) - set(anchors.WEIGHT_ANCHORS) - set(anchors.VIEW_ANCHORS)
)
PULLING = sorted(set(STEPWISE) - {"none"})


def normal(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.fixture
def steps(rng):
  """Returns v -> Step on one stored transition, and two velocities."""
  x, x_next, v, v_ref = (normal(rng, B, H, H, C) for _ in range(4))

  def step(v):
    return transition.evaluate_step(
      lambda x, t: v,
      x,
      x_next,
      jnp.float32(T),
      jnp.float32(T_NEXT),
      transition=functools.partial(transition.flow_sde, noise_level=A),
      log_prob=transition.gaussian_log_prob,
    )

  return step, v, v_ref


@pytest.mark.parametrize("name", STEPWISE)
def test_anchors_vanish_at_the_reference(name, steps):
  step, v, _ = steps
  anchor = jax.jit(anchors.ANCHORS[name])
  np.testing.assert_array_equal(
    anchor(step(v), step(v)), np.zeros(B, np.float32)
  )
  grad = jax.grad(lambda u: jnp.sum(anchor(step(u), step(v))))(v)
  np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("name", STEPWISE)
def test_anchors_are_not_negative(name, steps):
  step, v, v_ref = steps
  value = jax.jit(anchors.ANCHORS[name])(step(v), step(v_ref))
  assert value.shape == (B,) and value.dtype == jnp.float32
  assert np.all(np.asarray(value) >= 0)


@pytest.mark.parametrize("name", PULLING)
def test_anchors_pull_towards_the_reference(name, steps):
  step, v, v_ref = steps
  anchor = anchors.ANCHORS[name]
  grad = jax.grad(lambda u: jnp.sum(anchor(step(u), step(v_ref))))(v)
  assert np.all(np.asarray(jnp.sum(grad * (v - v_ref), (1, 2, 3))) > 0)
  further = anchor(step(v_ref + 3 * (v - v_ref)), step(v_ref))
  np.testing.assert_allclose(
    further, 9 * anchor(step(v), step(v_ref)), rtol=1e-4
  )


@pytest.mark.parametrize("name", STEPWISE)
def test_anchors_take_images_one_by_one(name, steps):
  step, v, v_ref = steps
  moved = v.at[1:].add(1.0)
  anchor = anchors.ANCHORS[name]
  here, there = anchor(step(v), step(v_ref)), anchor(step(moved), step(v_ref))
  np.testing.assert_allclose(here[0], there[0], rtol=1e-6)


@pytest.mark.parametrize("name", STEPWISE)
def test_images_may_sit_at_different_steps(name, steps):
  step, v, v_ref = steps
  new = step(v)
  spread = dataclasses.replace(
    new,
    std=jnp.broadcast_to(new.std, (B, 1, 1, 1)),
    interval=jnp.broadcast_to(new.interval, (B, 1, 1, 1)),
  )
  anchor = anchors.ANCHORS[name]
  np.testing.assert_allclose(
    anchor(spread, step(v_ref)), anchor(new, step(v_ref)), rtol=1e-6
  )


def test_none_is_zero_away_from_the_reference(steps):
  step, v, v_ref = steps
  np.testing.assert_array_equal(anchors.none(step(v), step(v_ref)), 0.0)


def test_kl_has_its_closed_form_in_the_velocities(steps):
  """(h/2) (s (1-t) / (2t) + 1/s)^2 mean (v - v_ref)^2, Flow-GRPO."""
  step, v, v_ref = steps
  h, s = T - T_NEXT, A * np.sqrt(T / (1 - T))
  factor = h / 2 * (s * (1 - T) / (2 * T) + 1 / s) ** 2
  shift = np.mean(np.square(v - v_ref), axis=(1, 2, 3))
  new, reference = step(v), step(v_ref)
  np.testing.assert_allclose(
    anchors.velocity_mse(new, reference), shift, rtol=1e-5
  )
  np.testing.assert_allclose(
    anchors.kl(new, reference), factor * shift, rtol=1e-4
  )
  np.testing.assert_allclose(
    anchors.kl_published(new, reference), h * factor * shift, rtol=1e-4
  )


def test_weights_are_pulled_to_where_they_started(rng):
  start = {"a": normal(rng, 3, 2), "b": {"c": normal(rng, 4)}}
  params = jax.tree.map(lambda x: x + 0.5, start)
  value, grad = jax.value_and_grad(anchors.weight_to_init)(params, start)
  np.testing.assert_allclose(value, 10 * 0.25, rtol=1e-5)
  for leaf in jax.tree.leaves(grad):
    np.testing.assert_allclose(leaf, 1.0, rtol=1e-5)
  assert anchors.weight_to_init(start, start) == 0
