"""The policy update: selected images in, a moved policy out, all jitted."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from spatialrl.flow.rollout import guided
from spatialrl.flow.transition import evaluate_step, repeatable
from spatialrl.records import UpdateBatch
from spatialrl.rl.ema import ema_update


def make_update(policy, optimizer, slots, config, *, guidance):
  """Builds the update of one iteration.

  Without rematerialised layers the network is wrapped in `repeatable`, so
  that the first ratio of an iteration is exactly 1 in float32 when the rollout
  calls the network with as many rows as the update (`rollout.in_chunks`). XLA
  blocks matrix products of other sizes otherwise: 1.2e-7 was seen.

  Args:
    policy: Policy.
    optimizer: optax.GradientTransformation over the trained weights.
    slots: with `transition`, `log_prob`, `objective`, `anchor` bound.
    config: fields `updates` (optimizer steps an iteration, each on its share
      of the images), `anchor_weight`, `ema_decay`, `ema_every`.

  Returns:
    (base, state, UpdateBatch) -> (state, dict of f32[]). Row r of the batch
    goes to optimizer step r modulo `updates`, so that every device keeps its
    own rows.
  """

  def step_loss(trainable, base, batch, k):
    """Sum over images of the loss of window step k."""
    trajectory, cond = batch.trajectory, batch.conditioning

    def evaluate(weights):
      def velocity(x, t, c):
        return policy.velocity(base, weights, x, t, c)

      empty = policy.encode_empty(base, cond) if guidance != 1 else None
      field = guided(velocity, cond, empty, guidance)
      if not policy.mmdit.remat:
        field = repeatable(field)
      return evaluate_step(
          field,
          trajectory.x[k],
          trajectory.x[k + 1],
          trajectory.t[k],
          trajectory.t[k + 1],
          transition=slots.transition,
          log_prob=slots.log_prob,
      )

    new = evaluate(trainable)
    old_log_prob = trajectory.log_prob[k]
    loss, metrics = slots.objective(
        new,
        trajectory.mean[k],
        old_log_prob,
        batch.advantage,
        batch.weight[k],
    )
    difference = jnp.abs(new.log_prob - old_log_prob).mean((1, 2))
    metrics |= {"log_prob_difference": difference}
    if config.anchor_weight:
      reference = jax.lax.stop_gradient(evaluate(None))
      anchor = slots.anchor(new, reference)
      loss = loss + config.anchor_weight * anchor
      metrics |= {"anchor": anchor}
    # A padding row has no say, not even through the anchor.
    loss = jnp.where(batch.keep, loss, 0.0)
    return loss.sum(), metrics

  def minibatch(carry, batch):
    base, state = carry
    kept = jnp.maximum(batch.keep.sum(), 1)
    window = batch.trajectory.t.shape[0] - 1

    def accumulate(total, k):
      (loss, metrics), grads = jax.value_and_grad(step_loss, has_aux=True)(
          state.params, base, batch, k
      )
      return jax.tree.map(jnp.add, total, (loss, grads)), metrics

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    (loss, grads), metrics = jax.lax.scan(
        accumulate, zero, jnp.arange(window)
    )
    scale = 1.0 / (kept * window)
    grads = jax.tree.map(lambda g: g * scale, grads)
    moves, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, moves)
    state = dataclasses.replace(
        state,
        updates=state.updates + 1,
        params=params,
        opt_state=opt_state,
        ema=ema_update(
            state.ema,
            params,
            state.updates,
            decay=config.ema_decay,
            every=config.ema_every,
        ),
    )
    out = {
        "loss": loss * scale,
        "grad_norm": optax.tree.norm(grads),
        "kept": batch.keep.sum().astype(jnp.float32),
        # [W, M], padding out
        **{n: (v, batch.keep) for n, v in metrics.items()},
    }
    return (base, state), out

  def update(base, state, batch):
    parts = _split(batch, config.updates)
    (_, state), out = jax.lax.scan(minibatch, (base, state), parts)
    return state, _summarise(out)

  return update


def _split(batch, parts):
  """UpdateBatch of B rows -> the same with a leading axis of `parts`."""
  rows = batch.keep.shape[0]
  if rows % parts:
    raise ValueError(
        f"train.updates is {parts}; it must divide the {rows} images that"
        " selection leaves."
    )

  def cut(x, axis):
    shape = x.shape
    x = x.reshape(*shape[:axis], rows // parts, parts, *shape[axis + 1 :])
    return jnp.moveaxis(x, axis + 1, 0)

  trajectory = batch.trajectory
  steps = trajectory.t.shape
  return UpdateBatch(
      trajectory=dataclasses.replace(
          trajectory,
          x=cut(trajectory.x, 1),
          t=jnp.broadcast_to(trajectory.t, (parts, *steps)),
          mean=cut(trajectory.mean, 1),
          log_prob=cut(trajectory.log_prob, 1),
          final=cut(trajectory.final, 0),
          group=cut(trajectory.group, 0),
      ),
      conditioning=jax.tree.map(lambda x: cut(x, 0), batch.conditioning),
      advantage=cut(batch.advantage, 0),
      keep=cut(batch.keep, 0),
      weight=cut(batch.weight, 1),
  )


def _summarise(out):
  """Means over kept rows; extremes and first-step values beside them."""
  metrics = {
      "loss": out["loss"].mean(),
      "grad_norm": out["grad_norm"].mean(),
      "images_updated": out["kept"].sum(),
  }
  for name, value in out.items():
    if not isinstance(value, tuple):
      continue
    values, keep = value  # [U, W, M], [U, M]
    keep = jnp.broadcast_to(keep[:, None], values.shape)
    metrics[name] = jnp.sum(values * keep) / jnp.maximum(keep.sum(), 1)
    if name == "ratio":
      metrics["ratio_max"] = jnp.max(jnp.where(keep, values, 0.0))
      first = jnp.where(keep[0], jnp.abs(values[0] - 1), 0.0)
      metrics["ratio_first_deviation"] = jnp.max(first)
    if name == "log_prob_difference":
      # Before the first optimizer step: rollout against update, same weights.
      first = jnp.sum(values[0] * keep[0]) / jnp.maximum(keep[0].sum(), 1)
      metrics["log_prob_mismatch"] = first
  return metrics
