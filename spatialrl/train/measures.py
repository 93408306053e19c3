"""Numbers of one iteration: rewards, and where the time went."""

import time

import jax
import jax.numpy as jnp

from spatialrl.rl import select as selection


def reward_metrics(reward, signals, group, keep):
  """Means and spreads of the rewards of one iteration, dict of f32[]."""
  ok = selection.scored(reward)
  rows = reward.shape[0]
  count = jnp.maximum(ok.sum(), 1)
  mean = jnp.where(ok, reward, 0.0).sum() / count
  spread = jnp.sqrt(jnp.where(ok, (reward - mean) ** 2, 0.0).sum() / count)
  high = jax.ops.segment_max(jnp.where(ok, reward, -jnp.inf), group, rows)
  low = jax.ops.segment_min(jnp.where(ok, reward, jnp.inf), group, rows)
  used = jax.ops.segment_sum(jnp.ones(rows), group, rows) > 0
  flat = (used & (high <= low)).sum() / used.sum()
  values = {
      "reward": mean,
      "reward_std": spread,
      "zero_std_groups": flat,
      "failed_scores": (~ok).sum(),
      "judge_failures": sum(
          (~selection.scored(s.scalar)).sum() for s in signals.values()
      ),
      "kept_share": keep.mean(),
  }
  for name, signal in signals.items():
    there = selection.scored(signal.scalar)
    values[f"reward_{name}"] = (
        jnp.where(there, signal.scalar, 0.0).sum()
        / jnp.maximum(there.sum(), 1)
    )
    if signal.sigma is not None:
      values[f"reward_{name}_sigma"] = signal.sigma.mean()
  return values


class Clock:
  """Seconds since the last lap, by phase."""

  def __init__(self):
    self._began = self._last = time.perf_counter()
    self.seconds = {}

  def lap(self, phase):
    """Books the time since the last lap under `<phase>_seconds`."""
    now = time.perf_counter()
    self.seconds[f"{phase}_seconds"] = now - self._last
    self._last = now

  def total(self):
    return self._last - self._began
