"""Where and when an advantage acts: weights over steps and positions."""

import jax.numpy as jnp


def uniform(trajectory, signals):
  """Gives every step and position the same weight.

  Args:
    trajectory: records.Trajectory with W kept steps.
    signals: dict of records.Signals, unused.

  Returns:
    f32[W, B, h, w] of ones.
  """
  del signals
  return jnp.ones(trajectory.log_prob.shape, jnp.float32)


CREDITS = {"uniform": uniform}
