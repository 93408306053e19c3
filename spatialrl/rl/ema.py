"""Moving average of the trained parameters, used for evaluation."""

import jax
import jax.numpy as jnp


def ema_update(ema, params, step, *, decay, every):
  r"""Moves the average towards the parameters, once every few steps.

  $e \leftarrow e + (1 - d_k)(\theta - e)$ with
  $d_k = \min((1 + k)/(10 + k), d)$, applied when k + 1 is a multiple of
  `every` (Flow-GRPO: d = 0.9, every 8 steps).

  Args:
    ema: pytree of arrays.
    params: pytree like `ema`.
    step: k, i32[] or int, index of the optimizer step just taken, from 0.
    decay: d, largest decay.
    every: optimizer steps between two applications.

  Returns:
    pytree like `ema`, with its dtypes.
  """
  k = jnp.asarray(step, jnp.float32)
  rate = 1.0 - jnp.minimum((1.0 + k) / (10.0 + k), decay)
  due = (jnp.asarray(step) + 1) % every == 0

  def move(average, value):
    moved = average + rate * (value - average)
    return jnp.where(due, moved, average).astype(average.dtype)

  return jax.tree.map(move, ema, params)
