"""Every credit is a non-negative weight of mean 1 over each image and step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl import records
from spatialrl.rl import credit

W, B, H, C = 3, 4, 5, 2


def trajectory(rng):
  return records.Trajectory(
    x=jnp.asarray(rng.normal(size=(W + 1, B, H, H, C)), jnp.float32),
    t=jnp.linspace(1.0, 0.4, W + 1),
    mean=jnp.asarray(rng.normal(size=(W, B, H, H, C)), jnp.float32),
    log_prob=jnp.asarray(rng.normal(size=(W, B, H, H)), jnp.float32),
    final=jnp.asarray(rng.normal(size=(B, H, H, C)), jnp.float32),
    group=jnp.zeros(B, jnp.int32),
  )


@pytest.mark.parametrize("name", credit.CREDITS)
def test_credit_has_mean_one(name, rng):
  signals = {"judge": records.Signals(scalar=jnp.arange(B, dtype=jnp.float32))}
  weight = jax.jit(credit.CREDITS[name])(trajectory(rng), signals)
  assert weight.shape == (W, B, H, H) and weight.dtype == jnp.float32
  assert np.all(np.asarray(weight) >= 0)
  np.testing.assert_allclose(jnp.mean(weight, (0, 2, 3)), 1.0, rtol=1e-6)


def test_uniform_is_one_everywhere(rng):
  weight = credit.uniform(trajectory(rng), {})
  np.testing.assert_array_equal(weight, 1.0)
