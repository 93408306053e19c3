"""Weights beside the trained ones: an average that is evaluated, and the policy
that samples."""

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


def current(old, before, params, step):
  """The policy that samples is the one being trained; nothing is remembered."""
  del old, before, params, step
  return {}


def previous(old, before, params, step):
  """The policy that samples is one update behind the one being trained.

  Its weights are known before the update that it waits for, so the rollout of
  the next iteration runs while the judges still score this one. Importance
  ratios are against the policy that drew, as ever; they start off 1.

  Args:
    old: pytree of arrays.
    before: pytree like `old`, the trained weights before the update.
    params: pytree like `old`, those after it.
    step: i32[], iterations done.

  Returns:
    `before`.
  """
  del old, params, step
  return before


def ema_old(old, before, params, step, *, rate, ceiling):
  r"""DiffusionNFT's sampling policy, an average that slows down.

  $\theta_{old} \leftarrow d\,\theta_{old} + (1 - d)\,\theta$ after iteration k,
  $d = \min(\mathrm{rate}\cdot k, \mathrm{ceiling})$ (arXiv:2509.16117: 0.001
  and 0.5).

  Args:
    old: pytree of arrays.
    before: the trained weights before the update; not needed.
    params: pytree like `old`.
    step: i32[], k.
    rate: growth of the decay an iteration.
    ceiling: largest decay.

  Returns:
    pytree like `old`.
  """
  del before
  decay = jnp.minimum(rate * jnp.asarray(step, jnp.float32), ceiling)
  return jax.tree.map(lambda o, p: decay * o + (1 - decay) * p, old, params)


BEHAVIOURS = {
    "current": current,
    "previous": previous,
    "ema_old": ema_old,
}
# What draws next is known before the update: no rollout need wait for judges.
EARLY = ("previous",)
