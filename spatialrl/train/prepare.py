"""From scores to the batch of the update, jitted."""

import jax
import jax.numpy as jnp

from spatialrl.parallel import mesh as meshes
from spatialrl.records import UpdateBatch, map_rows
from spatialrl.rl import select as selection
from spatialrl.train.measures import reward_metrics

_VISITS = 4  # purpose of the run's key; 1 to 3 are those of `draw`, `update`


def kept_rows(config):
  """Images that reach the update; static, so that shapes are."""
  groups = config.prompts.per_step
  return selection.capacity(
      config.select.name,
      batch=groups * config.rollout.group,
      groups=groups,
      k=config.select.get("k"),
  )


def make_prepare(slots, config, mesh):
  """Builds what lies between judges and update.

  Args:
    slots: with `aggregate`, `select`, `advantage` and `credit` bound.
    config: of an `online` run.
    mesh: the mesh in use.

  Returns:
    (Trajectory of B images, Conditioning, token ids or None, Signals by judge,
    labels i32[B], the advantage's statistics, key, step i32[], latents of
    trusted images or None, Conditioning of contradicting prompts or None) ->
    (UpdateBatch of `kept_rows`, statistics, dict of f32[]).
  """

  def prepare(
      trajectory, cond, ids, signals, labels, stats, key, step,
      trusted=None, contrast=None,
  ):
    group = trajectory.group
    reward = slots.aggregate(signals)
    keep = slots.select(reward, group)
    if reward.ndim == 2:  # several signals, compared by the selector alone
      reward = reward.sum(-1)
    advantage, stats = slots.advantage(reward, keep, group, labels, stats)
    if advantage.ndim == 1:
      advantage = advantage[None, :, None, None]
    window = trajectory.t.shape[0] - 1
    visited = config.rollout.visited or window
    order = jnp.arange(window)
    if visited < window:
      key = jax.random.fold_in(jax.random.fold_in(key, step), _VISITS)
      order = jnp.sort(jax.random.permutation(key, window)[:visited])
    batch = UpdateBatch(
        trajectory=trajectory,
        conditioning=cond,
        ids=ids,
        reward=reward,
        advantage=advantage,
        keep=keep,
        weight=slots.credit(trajectory, signals),
        visits=order,
        trusted=trusted,
        contrast=contrast,
    )
    rows = selection.compact(keep, kept_rows(config))

    def take(x, axis):
      if axis is None:
        return x
      # Rows come from anywhere; left alone, every device would get them all.
      return jax.lax.with_sharding_constraint(
          jnp.take(x, rows, axis), meshes.batched(mesh, axis)
      )

    values = reward_metrics(reward, signals, group, keep)
    return map_rows(take, batch), stats, values

  return prepare
