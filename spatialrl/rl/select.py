"""Who enters the update: masks over the images of a batch; no statistics here.

A reward of -inf marks a failed score and is never kept. Any other non-finite
reward is left in, so that the run stops on it instead of hiding it.
"""

import jax
import jax.numpy as jnp


def scored(reward):
  """Returns bool[B], False where the score failed (reward is -inf)."""
  return reward != -jnp.inf


def all_images(reward, group):
  """Keeps every image whose score did not fail.

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    group: i32[B], unused.

  Returns:
    bool[B] mask.
  """
  del group
  return scored(reward)


def nonzero_std(reward, group):
  """Keeps the groups whose rewards differ; the others teach nothing.

  Flow-GRPO (arXiv:2505.05470) drops the images of advantage zero after it has
  taken the spread of the whole batch. Selection comes first here, so with
  `group_mean_batch_std` the constant groups do not shrink that spread; use
  `all_images` for the published number (their advantage is exactly 0).

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    group: i32[B] in [0, B), prompt index of each image.

  Returns:
    bool[B] mask.
  """
  ok = scored(reward)
  size = reward.shape[0]
  low = jax.ops.segment_min(jnp.where(ok, reward, jnp.inf), group, size)
  high = jax.ops.segment_max(jnp.where(ok, reward, -jnp.inf), group, size)
  return ok & (low != high)[group]


def topk_bottomk(reward, group, *, k):
  """Keeps the k best and the k worst images of each group.

  On easy prompts the group mean is high and good images get negative
  advantages; comparing only the extremes lessens that bias and halves the
  number of policy passes at k = G/4 (SpatialScore, arXiv:2602.24233, sec. 4).

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    group: i32[B] in [0, B), prompt index of each image.
    k: images kept at each end; at most half of the smallest group.

  Returns:
    bool[B] mask. Ties are broken by position, so each group keeps exactly
    min(2k, images whose score did not fail).
  """
  ok = scored(reward)
  size = reward.shape[0]
  # Sorted by group, then failures last, then best first, then position.
  order = jnp.lexsort((-reward, ~ok, group))
  place = jnp.argsort(order)
  members = jax.ops.segment_sum(jnp.ones(size, jnp.int32), group, size)
  first = jnp.cumsum(members) - members
  rank = place - first[group]
  count = jax.ops.segment_sum(ok.astype(jnp.int32), group, size)[group]
  return ok & ((rank < k) | (rank >= count - k))


def group_variance(reward, group, *, min_std, max_mean):
  """Drops the groups that agree and are good: they teach only noise.

  A group is dropped if its spread is below `min_std` and its mean above
  `max_mean` (the ban list of UniWorld-V2, 0.05 and 0.9 for rewards in [0, 1];
  the training mask of the same repository, off by default, keeps only groups of
  large spread and small mean).

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    group: i32[B] in [0, B), prompt index of each image.
    min_std: spread, in units of the reward.
    max_mean: mean, in units of the reward.

  Returns:
    bool[B] mask.
  """
  mean, std, ok = _group_moments(reward, group)
  return ok & ~((std < min_std) & (mean > max_mean))[group]


def branch_extremes(reward, group, *, threshold):
  """Keeps the best and the worst of each branch, where they stand out.

  The best image if it lies at least `threshold` group spreads above the mean,
  the worst if it lies more than that below (B2-DiffuRL, arXiv:2503.11240, with
  0.5; there the spread is that of the last 8 rounds of the prompt).

  Args:
    reward: f32[B], higher is better; -inf marks a failed score.
    group: i32[B] in [0, B), the branch of each image.
    threshold: in spreads of the group.

  Returns:
    bool[B] mask. Ties are broken by position.
  """
  mean, std, ok = _group_moments(reward, group)
  ends = topk_bottomk(reward, group, k=1)
  z = (reward - mean[group]) / (std[group] + 1e-6)
  return ends & ok & ((z >= threshold) | (z < -threshold) | jnp.isnan(z))


def pareto_front(reward, group):
  """Keeps the images of a group that no other beats in every signal.

  i is dropped if some j of its group is at least as good in all signals and
  better in one. Parrot (arXiv:2401.05675) takes the front of the whole batch;
  within a prompt is ours, since prompts are not equally hard.

  Args:
    reward: f32[B, J] from the aggregate `vector`; -inf rows have failed.
    group: i32[B], prompt index of each image.

  Returns:
    bool[B] mask.
  """
  if reward.ndim != 2:
    raise ValueError(
      f"select.name is 'pareto_front' and the reward has shape {reward.shape};"
      " it needs aggregate.name 'vector'."
    )
  ok = ~(reward == -jnp.inf).any(-1)
  one, other = reward[:, None], reward[None]
  beaten = (other >= one).all(-1) & (other > one).any(-1)
  beaten &= (group[:, None] == group[None]) & ok[None]
  return ok & ~beaten.any(1)


def _group_moments(reward, group):
  """Mean and spread of each group by its id, f32[B] each, and the scored."""
  ok = scored(reward)
  size = reward.shape[0]
  count = jnp.maximum(jax.ops.segment_sum(ok * 1.0, group, size), 1.0)
  value = jnp.where(ok, reward, 0.0)
  mean = jax.ops.segment_sum(value, group, size) / count
  gap = jnp.where(ok, reward - mean[group], 0.0)
  square = jax.ops.segment_sum(jnp.square(gap), group, size) / count
  return mean, jnp.sqrt(square), ok


def check_k(k, *, group_size):
  """Raises ValueError if `topk_bottomk` cannot take k from both ends.

  Args:
    k: the field `select.k`.
    group_size: images of the smallest group.
  """
  if not 1 <= k <= group_size // 2:
    raise ValueError(
      f"select.k is {k}, but groups of {group_size} images allow"
      f" 1 to {group_size // 2} (at most half of the group at each end)."
    )


def capacity(name, *, batch, groups, k=None):
  """Returns the most rows that a selector can keep, as a Python int.

  Args:
    name: a key of SELECTORS.
    batch: B, images in the batch.
    groups: P, prompts in the batch.
    k: the k of `topk_bottomk`; unused by the others.
  """
  if name not in SELECTORS:
    raise ValueError(
      f"select.name is {name!r}, but the selectors are {sorted(SELECTORS)}."
    )
  if name == "topk_bottomk":
    check_k(k, group_size=batch // groups)
    return 2 * k * groups
  if name == "branch_extremes":
    check_k(1, group_size=batch // groups)
    return 2 * groups
  return batch


def compact(keep, capacity):
  """Returns row indices with the kept rows first, in their order.

  Args:
    keep: bool[B] mask with at most `capacity` True rows.
    capacity: static number of rows to return, see `capacity()`.

  Returns:
    i32[capacity]; rows past the kept ones are padding (`keep` is False there).
  """
  return jnp.argsort(~keep, stable=True)[:capacity].astype(jnp.int32)


SELECTORS = {
  "all": all_images,
  "nonzero_std": nonzero_std,
  "topk_bottomk": topk_bottomk,
  "group_variance": group_variance,
  "branch_extremes": branch_extremes,
  "pareto_front": pareto_front,
}
