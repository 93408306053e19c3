"""Checks of rewards whose gradient goes through the sampler."""

import functools

import jax
import jax.numpy as jnp

from experiments.checks.learning import batch_of, visit
from experiments.checks.world import Found, few, judge
from spatialrl.flow import transition as transitions
from spatialrl.train.configs import load_config
from spatialrl.train.slots import bind_all

_CHANGE = 0.1  # of the reward, for the finite difference


def chain_gradient(world):
  """AlignProp: is its gradient that of the whole chain, in bounded memory?

  Four steps of the ODE and the learned reward of what is drawn: the slope along
  the gradient, against the central difference of the weights moved along it so
  far that the reward changes by 0.1. The control lets the last step alone carry
  gradient. Memory of the compiled gradient with 4 and 16 steps; the control
  does not compute the steps again.
  """
  world = few(2)
  chain = functools.partial(_chain, world)
  whole, value = chain(4)
  weights = world.params["mmdit"]
  gradient = whole(weights)
  size = jnp.sqrt(_dot(gradient, gradient))
  unit = jax.tree.map(lambda g: g / size, gradient)
  h = 0.5 * _CHANGE / size
  ahead, behind = (
      value(jax.tree.map(lambda w, u, s=s: w + s * h * u, weights, unit))
      for s in (1, -1)
  )
  slope = float((ahead - behind) / (2 * h))
  cut = _dot(chain(4, gradient_steps=1)[0](weights), unit)
  rows = [
      {"gradient": name, "slope": s, "relative_error": abs(s / slope - 1)}
      for name, s in (
          ("whole chain", float(size)), ("control: last step", float(cut))
      )
  ]
  for row, again in zip(rows, (True, False), strict=True):
    few_, many = (_memory(chain(n, again=again)[0], weights) for n in (4, 16))
    row["memory_of_16_over_4_steps"] = many / few_
  return Found(
      rows, "error below 1e-3; four times the steps in less than 2.5 times the"
      " memory",
      holds=rows[0]["relative_error"] < 1e-3
      and rows[0]["memory_of_16_over_4_steps"] < 2.5,
      control_fails=rows[1]["relative_error"] > 1e-3
      and rows[1]["memory_of_16_over_4_steps"] > 2.5,
  )


def _chain(world, steps, *, gradient_steps=None, again=True):
  """(gradient, value) of the mean reward in the weights, both compiled."""
  config = load_config("configs/methods/align_prop.py")
  config.objective.update({
      "gradient_steps": gradient_steps or steps, "random_start": False,
  })
  slots = bind_all(config)
  _, path = world.rollout(
      transitions.ode, steps=steps, window=steps, last_step="noise",
      shared=False,
  )
  batch = batch_of(world, path, jnp.zeros(len(world.group)))
  reward = judge("spatial_score")
  text = reward.encode(world.repeated)

  def score(latents):
    return reward.score(world.policy.decode(world.params, latents), *text)

  def value(weights):
    if again:
      return -visit(world, slots, batch, weights, 0, None, score)[0].mean()

    def step(x, i):
      t, t_next = path.t[i], path.t[i + 1]
      v = world.policy.velocity(
          world.params, weights, x, jnp.full(len(x), t), world.cond
      )
      return x + (t_next - t) * v, None

    return score(jax.lax.scan(step, path.x[0], jnp.arange(steps))[0]).mean()

  return jax.jit(jax.grad(value)), jax.jit(value)


def _dot(a, b):
  parts = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
  return sum(jax.tree.leaves(parts))


def _memory(program, weights):
  """Bytes that a compiled program needs beside its arguments and results."""
  compiled = program.lower(weights).compile()
  return compiled.memory_analysis().temp_size_in_bytes


CHECKS = (chain_gradient,)
