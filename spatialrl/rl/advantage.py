"""Baseline and scale: kept rewards to advantages; clipping is the objective's.

Every entry maps (reward, keep, group, stats) to (advantage, stats). Rows that
are not kept, and failed scores (-inf), enter no statistic and get exactly 0.
Spreads are population standard deviations. `stats` carries what an entry
remembers between updates; the entries without memory return it untouched.
"""

import jax
import jax.numpy as jnp

from spatialrl.rl import select


def _segment_mean(value, keep, group):
  """Returns f32[B], each group's mean of values that are 0 where not kept."""
  size = value.shape[0]
  total = jax.ops.segment_sum(value, group, size)
  count = jax.ops.segment_sum(keep.astype(jnp.float32), group, size)
  return (total / jnp.maximum(count, 1.0))[group]


def _centred(reward, keep, group):
  """Returns f32[B], kept reward minus its group's mean, 0 elsewhere.

  The group's smallest reward is taken off first: rewards that sit far from 0
  and close together then lose no digits, and a constant group gives exactly 0.
  """
  size = reward.shape[0]
  low = jax.ops.segment_min(jnp.where(keep, reward, jnp.inf), group, size)
  above = jnp.where(keep, reward - low[group], 0.0)
  return jnp.where(keep, above - _segment_mean(above, keep, group), 0.0)


def group_z(reward, keep, group, stats, *, eps=1e-4):
  r"""Standardises the reward inside each group.

  $A_i = (r_i - \mathrm{mean}_g) / (\mathrm{std}_g + \epsilon)$, mean and
  spread over the kept images of the group (DanceGRPO, arXiv:2505.07818, where
  eps is 1e-8; Flow-GRPO's per-prompt option has 1e-4).

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    keep: bool[B], images that take part.
    group: i32[B] in [0, B), prompt index of each image.
    stats: any pytree, returned untouched.
    eps: positive, in units of the reward.

  Returns:
    f32[B] advantages (0 where not kept), and `stats`.
  """
  keep = keep & select.scored(reward)
  centred = _centred(reward, keep, group)
  std = jnp.sqrt(_segment_mean(jnp.square(centred), keep, group))
  return centred / (std + eps), stats


def group_mean_batch_std(reward, keep, group, stats, *, eps=1e-4):
  r"""Subtracts the group's mean and divides by the spread of the batch.

  $A_i = (r_i - \mathrm{mean}_g) / (\mathrm{std}_B + \epsilon)$ with the spread
  of all kept rewards about their common mean, so it includes the differences
  between prompts (Flow-GRPO, arXiv:2505.05470, its `global_std`).

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    keep: bool[B], images that take part.
    group: i32[B] in [0, B), prompt index of each image.
    stats: any pytree, returned untouched.
    eps: positive, in units of the reward.

  Returns:
    f32[B] advantages (0 where not kept), and `stats`.
  """
  keep = keep & select.scored(reward)
  one_group = jnp.zeros_like(group)
  about_batch = _centred(reward, keep, one_group)
  std = jnp.sqrt(_segment_mean(jnp.square(about_batch), keep, one_group))
  return _centred(reward, keep, group) / (std + eps), stats


ADVANTAGES = {
  "group_z": group_z,
  "group_mean_batch_std": group_mean_batch_std,
}
