"""The average moves on schedule, by the published decay, and keeps dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.rl import ema


def test_the_average_follows_the_published_schedule(rng):
  update = jax.jit(
    functools.partial(ema.ema_update, decay=0.9, every=8), donate_argnums=0
  )
  values = rng.normal(size=(200, 3)).astype(np.float32)
  average = {"a": jnp.zeros(3)}
  want = np.zeros(3)
  for k, value in enumerate(values):
    average = update(average, {"a": jnp.asarray(value)}, jnp.int32(k))
    if k % 8 == 7:
      d = min((1 + k) / (10 + k), 0.9)
      want = d * want + (1 - d) * value
    np.testing.assert_allclose(average["a"], want, atol=1e-6)


@pytest.mark.parametrize("every", [1, 4])
def test_the_average_stays_put_between_applications(every):
  average, params = {"a": jnp.ones(2)}, {"a": jnp.full(2, 3.0)}
  moves = [
    not np.array_equal(
      ema.ema_update(average, params, k, decay=0.5, every=every)["a"],
      average["a"],
    )
    for k in range(8)
  ]
  assert moves == [(k + 1) % every == 0 for k in range(8)]


def test_the_average_keeps_its_dtype():
  average, params = jnp.zeros(2), jnp.ones(2, jnp.bfloat16)
  got = ema.ema_update(average, params, 0, decay=0.9, every=1)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, 0.9, rtol=1e-6)
  got = ema.ema_update(params, average, 0, decay=0.9, every=1)
  assert got.dtype == jnp.bfloat16


def test_the_old_policy_slows_down_to_its_ceiling():
  old, new = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
  for step, decay in ((0, 0.0), (100, 0.1), (10_000, 0.5)):
    moved = ema.ema_old(old, {}, new, step, rate=0.001, ceiling=0.5)
    np.testing.assert_allclose(moved["w"], 1 - decay, rtol=1e-6)
