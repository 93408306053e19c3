"""Initial noise and guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow import rollout as flow

B, H, W, C = 6, 4, 4, 3
GROUP = jnp.arange(B) // 3


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def test_initial_noise_is_shared_in_a_group_only_if_asked():
  noise = functools.partial(flow.initial_noise, jax.random.key(0))
  own = np.asarray(noise(GROUP, (H, W, C), shared=False))
  shared = np.asarray(noise(GROUP, (H, W, C), shared=True))
  assert own.shape == shared.shape == (B, H, W, C)
  assert len({x.tobytes() for x in own}) == B
  assert len({x.tobytes() for x in shared}) == 2
  np.testing.assert_array_equal(shared[0], shared[2])
  # The batch around an image does not change it.
  np.testing.assert_array_equal(
    noise(GROUP[:3], (H, W, C), shared=False), own[:3]
  )
  np.testing.assert_array_equal(
    noise(GROUP[3:], (H, W, C), shared=True), shared[3:]
  )
  big = np.asarray(noise(jnp.arange(50), (8, 8, 4), shared=True))
  assert abs(big.mean()) < 0.04 and abs(big.std() - 1) < 0.04


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_guidance_formula_and_number_of_calls(scale):
  calls = []

  def velocity(x, t, cond):
    calls.append((x.shape[0], t.shape[0]))
    y = x * t[:, None, None, None] + cond["a"][:, None, None]
    return y * cond["b"][:, None, None]

  x, t = normal(1, B, H, W, C), jnp.linspace(0.1, 0.9, B)
  cond = {"a": normal(2, B, C), "b": normal(3, B, C)}
  uncond = {"a": normal(4, B, C), "b": normal(5, B, C)}
  ours = flow.guided(velocity, cond, uncond, scale)(x, t)
  assert calls == [(B, B) if scale == 1 else (2 * B, 2 * B)]
  v_c, v_u = velocity(x, t, cond), velocity(x, t, uncond)
  expected = v_u + scale * (v_c - v_u)
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_guidance_of_a_half_precision_network_is_float32():
  def velocity(x, t, cond):
    return x.astype(jnp.bfloat16) + cond[:, None, None]

  cond = jnp.ones((B, C), jnp.bfloat16)
  guide = flow.guided(velocity, cond, 2 * cond, 3.0)
  assert guide(normal(1, B, H, W, C), jnp.ones(B)).dtype == jnp.float32
