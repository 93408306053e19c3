"""The policy update: selected images in, a moved policy out, all jitted."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from spatialrl.flow.rollout import guided
from spatialrl.flow.transition import repeatable
from spatialrl.records import map_rows
from spatialrl.rl.anchors import VIEW_ANCHORS, WEIGHT_ANCHORS
from spatialrl.rl.ema import ema_update
from spatialrl.rl.view import View

_DRAWS = 3  # purpose of the run's key; 1 and 2 are the rollout's


def make_update(policy, optimizer, slots, config, *, guidance, judge=None):
  """Builds the update of one iteration.

  Without rematerialised layers the network is wrapped in `repeatable`, so
  that the first ratio of an iteration is exactly 1 in float32 when the rollout
  calls the network with as many rows as the update (`rollout.in_chunks`). XLA
  blocks matrix products of other sizes otherwise: 1.2e-7 was seen.

  Args:
    policy: Policy.
    optimizer: optax.GradientTransformation over the trained weights.
    slots: with `transition`, `log_prob`, `objective`, `prepare` (or None),
      `anchor` and `behaviour` bound.
    config: fields `updates` (optimizer steps an iteration, each on its share
      of the images), `microbatch` (rows of one gradient, which are summed up
      to that of the step; 0 for all), `anchor_weight`, `ema_decay`,
      `ema_every`.
    guidance: scale of classifier-free guidance.
    judge: (images f32[M, S, S, 3], ids i32[M, L], mask bool[M, L], what the
      judges have learned) -> f32[M], for objectives that differentiate it.

  Returns:
    (base, state, UpdateBatch) -> (state, dict of f32[]). Row r of the batch
    goes to optimizer step r modulo `updates`, so that every device keeps its
    own rows.
  """
  draws = slots.objective.keywords.get("draws")
  anchor_entry = getattr(slots.anchor, "func", slots.anchor)
  weight_anchor = anchor_entry in WEIGHT_ANCHORS.values()
  view_anchor = anchor_entry in VIEW_ANCHORS.values()

  def look(trainable, base, old, judges, batch):
    """The View of a batch, with gradients to `trainable` alone."""
    cond = batch.conditioning
    empty = policy.encode_empty(base, cond) if guidance != 1 else None

    def field(weights):
      def velocity(x, t, c):
        return policy.velocity(base, weights, x, t, c)

      def ask(x, t, text=cond):
        closure = guided(velocity, text, empty, guidance)
        return (closure if policy.remat else repeatable(closure))(x, t)

      return ask

    fields = {"new": trainable, "old": old, "reference": None}
    return View(
        {name: field(weights) for name, weights in fields.items()},
        batch,
        transition=slots.transition,
        log_prob=slots.log_prob,
        judge=lambda latents: judge(
            policy.decode(base, latents), batch.ids, cond.mask, judges
        ),
    )

  def visit_loss(trainable, base, old, judges, batch, k, key):
    """Sum over images of the loss of one visit."""
    view = look(trainable, base, old, judges, batch)
    loss, metrics, anchored = slots.objective(view, k, key)
    if config.anchor_weight and not weight_anchor:
      if view_anchor:
        anchor = slots.anchor(view, k, key)
      else:
        new, reference = anchored()
        anchor = slots.anchor(new, jax.lax.stop_gradient(reference))
      loss = loss + config.anchor_weight * anchor
      metrics |= {"anchor": anchor}
    # A padding row has no say, not even through the anchor.
    loss = jnp.where(batch.keep, loss, 0.0)
    calls = view.calls * (1 if guidance == 1 else 2)
    metrics |= {"calls": jnp.full(loss.shape, calls, jnp.float32)}
    return loss.sum(), metrics

  def minibatch(carry, batch):
    base, old, state = carry
    kept = jnp.maximum(batch.keep.sum(), 1)
    key = jax.random.fold_in(
        jax.random.fold_in(state.key, state.updates), _DRAWS
    )
    visits = batch.visits if draws is None else jnp.arange(draws)
    prepared = 0
    if slots.prepare is not None:
      view = look(state.params, base, old, state.judges, batch)
      batch = dataclasses.replace(batch, advantage=slots.prepare(view))
      prepared = view.calls * (1 if guidance == 1 else 2)

    def accumulate(total, piece):
      part, key = piece

      def visit(total, k):
        (loss, metrics), grads = jax.value_and_grad(visit_loss, has_aux=True)(
            state.params, base, old, state.judges, part, k, key
        )
        return jax.tree.map(jnp.add, total, (loss, grads)), metrics

      return jax.lax.scan(visit, total, visits)

    rows, microbatch = batch.keep.shape[0], config.microbatch
    count = -(-rows // (microbatch or rows))
    parts = _split(batch, count, f"train.microbatch is {microbatch}")
    # Parts draw times and noise of their own.
    keys = key[None] if count == 1 else jax.random.split(key, count)
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    (loss, grads), metrics = jax.lax.scan(
        accumulate, zero, (parts, keys)
    )
    metrics = jax.tree.map(_joined, metrics)  # [W, M]
    scale = 1.0 / (kept * visits.shape[0])
    grads = jax.tree.map(lambda g: g * scale, grads)
    if config.anchor_weight and weight_anchor:
      pull = jax.grad(slots.anchor)(state.params, policy.start(base))
      grads = jax.tree.map(
          lambda g, p: g + config.anchor_weight * p, grads, pull
      )
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
    metrics["calls"] = metrics["calls"] + prepared
    out = {
        "loss": loss * scale,
        "grad_norm": optax.tree.norm(grads),
        "kept": batch.keep.sum().astype(jnp.float32),
        # [W, M], padding out
        **{n: (v, batch.keep) for n, v in metrics.items()},
    }
    return (base, old, state), out

  def update(base, state, batch):
    old = state.old or state.params  # {}: the policy of the rollout
    parts = _split(
        batch, config.updates, f"train.updates is {config.updates}"
    )
    before, carry = state.params, (base, old, state)
    (_, _, state), out = jax.lax.scan(minibatch, carry, parts)
    if state.old:
      moved = slots.behaviour(state.old, before, state.params, state.step)
      state = dataclasses.replace(state, old=moved)
    return state, _summarise(out)

  return update


def _split(batch, parts, what):
  """UpdateBatch of B rows -> the same with a leading axis of `parts`.

  Raises:
    ValueError: if the rows do not divide; `what` says whose fault it is.
  """
  rows = batch.keep.shape[0]
  if rows % parts:
    raise ValueError(f"{what}; it must divide {rows} images.")

  def cut(x, axis):
    if axis is None:
      return jnp.broadcast_to(x, (parts, *x.shape))
    shape = x.shape
    x = x.reshape(*shape[:axis], rows // parts, parts, *shape[axis + 1 :])
    return jnp.moveaxis(x, axis + 1, 0)

  return map_rows(cut, batch)


def _joined(values):
  """What was measured of the parts, [parts, W, M / parts], in rows: [W, M]."""
  return jnp.moveaxis(values, 0, -1).reshape(values.shape[1], -1)


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
    if name == "calls":  # of the whole update; padding costs as much as images
      metrics["update_calls"] = jnp.sum(values)
      del metrics["calls"]
    if name == "log_prob_difference":
      # Before the first optimizer step: rollout against update, same weights.
      first = jnp.sum(values[0] * keep[0]) / jnp.maximum(keep[0].sum(), 1)
      metrics["log_prob_mismatch"] = first
  return metrics
