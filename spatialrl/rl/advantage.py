"""Baseline and scale: kept rewards to advantages; clipping is the objective's.

Every entry maps (reward, keep, group, label, stats) to (advantage, stats). Rows
that are not kept, and failed scores (-inf), enter no statistic and get exactly
0. Spreads are population standard deviations. `stats` carries what an entry
remembers between updates, by `label`; see MEMORY. The entries without memory
return it untouched.
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


def group_z(reward, keep, group, label, stats, *, eps=1e-4):
  r"""Standardises the reward inside each group.

  $A_i = (r_i - \mathrm{mean}_g) / (\mathrm{std}_g + \epsilon)$, mean and
  spread over the kept images of the group (DanceGRPO, arXiv:2505.07818, where
  eps is 1e-8; Flow-GRPO's per-prompt option has 1e-4).

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    keep: bool[B], images that take part.
    group: i32[B] in [0, B), prompt index of each image.
    label: unused.
    stats: any pytree, returned untouched.
    eps: positive, in units of the reward.

  Returns:
    f32[B] advantages (0 where not kept), and `stats`.
  """
  del label
  keep = keep & select.scored(reward)
  centred = _centred(reward, keep, group)
  std = jnp.sqrt(_segment_mean(jnp.square(centred), keep, group))
  return centred / (std + eps), stats


def group_mean_batch_std(reward, keep, group, label, stats, *, eps=1e-4):
  r"""Subtracts the group's mean and divides by the spread of the batch.

  $A_i = (r_i - \mathrm{mean}_g) / (\mathrm{std}_B + \epsilon)$ with the spread
  of all kept rewards about their common mean, so it includes the differences
  between prompts (Flow-GRPO, arXiv:2505.05470, its `global_std`).

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    keep: bool[B], images that take part.
    group: i32[B] in [0, B), prompt index of each image.
    label: unused.
    stats: any pytree, returned untouched.
    eps: positive, in units of the reward.

  Returns:
    f32[B] advantages (0 where not kept), and `stats`.
  """
  del label
  keep = keep & select.scored(reward)
  one_group = jnp.zeros_like(group)
  about_batch = _centred(reward, keep, one_group)
  std = jnp.sqrt(_segment_mean(jnp.square(about_batch), keep, one_group))
  return _centred(reward, keep, group) / (std + eps), stats


def _moments(reward, keep, label, labels):
  """Mean and mean square by label, f32[N, 2], and bool[N] where any is kept."""
  value = jnp.where(keep, reward, 0.0)
  count = jax.ops.segment_sum(keep.astype(jnp.float32), label, labels)
  sums = [jax.ops.segment_sum(value**n, label, labels) for n in (1, 2)]
  return jnp.stack(sums, -1) / jnp.maximum(count, 1.0)[:, None], count > 0


def raw(reward, keep, group, label, stats):
  """The reward itself, for objectives that are not policy gradients.

  Args:
    reward: f32[B]; -inf marks a failed score.
    keep: bool[B], images that take part.
    group: unused.
    label: unused.
    stats: any pytree, returned untouched.

  Returns:
    f32[B] rewards (0 where not kept), and `stats`.
  """
  del group, label
  keep = keep & select.scored(reward)
  return jnp.where(keep, reward, 0.0), stats


def running_per_prompt(reward, keep, group, label, stats, *, rounds, eps=1e-4):
  r"""Standardises by what a prompt's images got in its last rounds.

  $A_i = (r_i - m_p) / (s_p + \epsilon)$ with mean and spread of prompt p over
  its last `rounds` visits, this one included (B2-DiffuRL, arXiv:2503.11240,
  where it is 8; RLCM keeps all of them). All images that were scored count in
  them, also those that selection drops, as in the public code. Visits are
  weighed alike; a visit keeps its mean and mean square only.

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    keep: bool[B], images that take part.
    group: i32[B], unused: two groups of one prompt are one visit.
    label: i32[B], index of the prompt in the list of training prompts.
    stats: {"moments": f32[N, R, 2], "visits": i32[N]} from `initial_stats`.
    rounds: R, must be that of `stats`.
    eps: positive, in units of the reward.

  Returns:
    f32[B] advantages (0 where not kept), and the new stats.
  """
  del group
  scored = select.scored(reward)
  now, visited = _moments(reward, scored, label, stats["visits"].shape[0])
  slot = stats["visits"] % rounds
  place = jax.nn.one_hot(slot, rounds, dtype=bool) & visited[:, None]
  moments = jnp.where(place[..., None], now[:, None], stats["moments"])
  visits = stats["visits"] + visited
  used = jnp.arange(rounds)[None] < jnp.minimum(visits, rounds)[:, None]
  first, second = jnp.moveaxis(
    jnp.sum(moments * used[..., None], 1)
    / jnp.maximum(used.sum(1), 1)[:, None],
    -1,
    0,
  )
  std = jnp.sqrt(jnp.maximum(second - first**2, 0.0))
  advantage = (reward - first[label]) / (std[label] + eps)
  advantage = jnp.where(keep & scored, advantage, 0.0)
  return advantage, {"moments": moments, "visits": visits}


def ema_task_std(
  reward, keep, group, label, stats, *, decay, guard, min_std=1e-6
):
  r"""Centres by the group, divides by a moving spread of the reward's task.

  $A_i = (r_i - \mathrm{mean}_g) / (\sigma_\tau + 10^{-6})$ with
  $\sigma_\tau^2 = m_2 - m_1^2$ of moving averages over updates, this update
  first (EMA-GRPO, OneThinker; decay 0.99). A group in which any |A| exceeds
  `guard` (5) is divided by its own spread instead.

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    keep: bool[B], images that take part.
    group: i32[B] in [0, B), prompt index of each image.
    label: i32[B], the task: index of the prompt's predicate.
    stats: {"moments": f32[N, 2], "seen": bool[N]} from `initial_stats`.
    decay: of the moving averages.
    guard: largest |A| before a group falls back.
    min_std: floor of the moving spread.

  Returns:
    f32[B] advantages (0 where not kept), and the new stats.
  """
  keep = keep & select.scored(reward)
  old, seen = stats["moments"], stats["seen"]
  now, here = _moments(reward, keep, label, seen.shape[0])
  moved = jnp.where(seen[:, None], decay * old + (1 - decay) * now, now)
  moments = jnp.where(here[:, None], moved, old)
  variance = moments[:, 1] - moments[:, 0] ** 2
  std = jnp.maximum(jnp.sqrt(jnp.maximum(variance, 0.0)), min_std)
  centred = _centred(reward, keep, group)
  advantage = centred / (std[label] + 1e-6)
  size = reward.shape[0]
  worst = jax.ops.segment_max(jnp.abs(advantage), group, size)[group]
  own = jnp.sqrt(_segment_mean(jnp.square(centred), keep, group))
  advantage = jnp.where(worst > guard, centred / (own + 1e-6), advantage)
  return advantage, {"moments": moments, "seen": seen | here}


def branch_depth(
  reward, keep, group, label, stats, *, window, splits, eps=1e-4
):
  r"""Each step's advantage is that of the branch it led to.

  A branch is worth the mean reward of its images, and branches of one group and
  depth are standardised among themselves: what a step decided is compared with
  what else could have been decided there (BranchGRPO, arXiv:2509.06040).

  Args:
    reward: f32[B], groups contiguous and of equal size; -inf marks a failed
      score.
    keep: bool[B], images that take part.
    group: i32[B] in [0, B), prompt index of each image.
    label: unused.
    stats: any pytree, returned untouched.
    window: W, steps of the rollout's window.
    splits: those at which branches split, as for `rollout.tree`.
    eps: positive, in units of the reward.

  Returns:
    f32[W, B, 1, 1] advantages (0 where not kept), and `stats`.
  """
  del label
  keep = keep & select.scored(reward)
  value = jnp.where(keep, reward, 0.0)
  size = jnp.maximum(jnp.sum(group == group[0]), 1)
  place = jnp.arange(reward.shape[0])
  steps = []
  for step in range(window):
    count = 2 ** sum(split <= step for split in splits)
    branch = place // (size // count)
    worth = _segment_mean(value, keep, branch)
    centred = _centred(worth, keep, group)
    std = jnp.sqrt(_segment_mean(jnp.square(centred), keep, group))
    steps.append(centred / (std + eps))
  return jnp.stack(steps)[:, :, None, None], stats


def initial_stats(name, *, prompts, tasks, rounds=1):
  """What an entry remembers before the first update.

  Args:
    name: a key of ADVANTAGES.
    prompts: number of training prompts.
    tasks: number of tasks.
    rounds: visits that `running_per_prompt` remembers.

  Returns:
    pytree of arrays, {} for the entries without memory.
  """
  if name == "running_per_prompt":
    return {
      "moments": jnp.zeros((prompts, rounds, 2), jnp.float32),
      "visits": jnp.zeros(prompts, jnp.int32),
    }
  if name == "ema_task_std":
    return {
      "moments": jnp.zeros((tasks, 2), jnp.float32),
      "seen": jnp.zeros(tasks, bool),
    }
  return {}


ADVANTAGES = {
  "group_z": group_z,
  "group_mean_batch_std": group_mean_batch_std,
  "raw": raw,
  "running_per_prompt": running_per_prompt,
  "ema_task_std": ema_task_std,
  "branch_depth": branch_depth,
}
# What `label` counts for the entries that remember.
MEMORY = {"running_per_prompt": "prompt", "ema_task_std": "task"}
