"""Sampling a batch: initial noise, guidance, and the scan over steps.

A rollout follows the deterministic flow except in a window of steps, where
it draws from the transition; the update visits that window only
(Flow-GRPO-Fast and MixGRPO; a window over all steps is plain Flow-GRPO).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spatialrl import records
from spatialrl.flow import transition as transitions

# How the step to t = 0 is taken, hence what is decoded and scored.
#   noise: a draw from the transition, also when the window ends before it
#     (Flow-GRPO). Its std there stays in the image: 0.22 on FLUX in 6 steps.
#   ode: x - t v. This is the Euler step and the one-step data prediction at
#     once, so it is also what DanceGRPO decodes.
LAST_STEPS = ("noise", "ode")

_INITIAL, _STEPS = 0, 1  # purposes, so that one key can serve both


def check_window(
  steps, window_range, window, transition, last_step, density=True
):
  """Refuses a stochastic window that would cover a step without noise.

  Args:
    steps: number of sampling steps K.
    window_range: (lo, hi), the window may cover steps lo, ..., hi - 1.
    window: number of stochastic steps W, anywhere in that range; 0 is the ODE.
    transition: name in TRANSITIONS.
    last_step: one of LAST_STEPS.
    density: whether the objective reads densities of the window's steps.

  Raises:
    ValueError: in one sentence, the field, its value and what is allowed.
  """
  _check_name("rollout.transition", transition, transitions.TRANSITIONS)
  _check_name("rollout.last_step", last_step, LAST_STEPS)
  lo, hi = window_range
  end, why = steps, f"there are {steps} steps"
  if last_step == "ode":
    end, why = steps - 1, "rollout.last_step ode draws no noise in the last one"
  elif density and transition in transitions.NOISELESS_AT_ZERO:
    end, why = steps - 1, f"{transition} has no noise in the last step"
  if not 0 <= lo <= hi <= end:
    raise ValueError(
      f"rollout.window_range is ({lo}, {hi}), it must be increasing and within"
      f" (0, {end}): {why}."
    )
  if density and transition == "ode" and window:
    raise ValueError(
      f"rollout.window is {window}, it must be 0 with rollout.transition ode,"
      " which has no density."
    )
  if not 0 <= window <= hi - lo:
    raise ValueError(
      f"rollout.window is {window}, it must be from 0 to {hi - lo} to fit in"
      f" rollout.window_range ({lo}, {hi})."
    )


def _check_name(field, value, allowed):
  if value not in allowed:
    raise ValueError(
      f"{field} is {value!r}, it must be one of {', '.join(allowed)}."
    )


def initial_noise(key, group, shape, *, shared):
  """Standard normal states at t = 1.

  The noise of an image depends on the key and on its index in the batch (or,
  if shared, on its group) alone: neither on the mesh nor on the batch size.

  Args:
    key: PRNG key.
    group: i32[B] index of the prompt of each image.
    shape: (h, w, C) of one latent.
    shared: whether all images of a group start from the same noise.

  Returns:
    f32[B, h, w, C].
  """
  key = jax.random.fold_in(key, _INITIAL)
  if not shared:
    return jax.random.normal(key, (group.shape[0], *shape), jnp.float32)
  return jax.vmap(
    lambda g: jax.random.normal(jax.random.fold_in(key, g), shape, jnp.float32)
  )(group)


def tree(groups, size, window, splits):
  """Which images share their noise where a group grows as a binary tree.

  At every step of `splits` each branch becomes two; images of one branch have
  the same noise and hence, from a shared start, the same state
  (BranchGRPO, arXiv:2509.06040).

  Args:
    groups: number of prompts P.
    size: images of each, G, a multiple of 2 to the number of splits.
    window: W, stochastic steps.
    splits: distinct steps of the window at which branches split.

  Returns:
    numpy i32[W, P G]: at each step, the branch of each image.
  """
  image = np.arange(groups * size)
  return np.stack([
    image // (size // 2 ** sum(split <= step for split in splits))
    for step in range(window)
  ]).astype(np.int32)


def in_chunks(velocity, rows):
  """The same velocity, from several network calls of `rows` images each.

  Matrix products of other sizes round otherwise, so a rollout in chunks of the
  update's rows is what makes the first ratio of an iteration exactly 1. It also
  bounds the memory of a call.

  Args:
    velocity: (x f32[B, h, w, C], t f32[B], cond) -> v.
    rows: rows of a call, static.

  Returns:
    The same function for any B that `rows` divides. Chunk c takes the rows c,
    c + B/rows, ..., so that every device keeps its own.

  Raises:
    ValueError: on tracing, if `rows` does not divide B.
  """

  def chunked(x, t, cond):
    parts, rest = divmod(x.shape[0], rows)
    if rest:
      raise ValueError(
        f"chunks of {rows} rows do not divide a batch of {x.shape[0]}."
      )
    if parts == 1:
      return velocity(x, t, cond)

    def cut(a):
      return jnp.moveaxis(a.reshape(rows, parts, *a.shape[1:]), 1, 0)

    out = lax.map(lambda args: velocity(*args), jax.tree.map(cut, (x, t, cond)))
    return jax.tree.map(
      lambda v: jnp.moveaxis(v, 0, 1).reshape(-1, *v.shape[2:]), out
    )

  return chunked


def guided(velocity, cond, uncond, scale):
  """Classifier-free guidance: v = v_u + scale (v_c - v_u).

  Args:
    velocity: (x f32[B, h, w, C], t f32[B], cond) -> v.
    cond: pytree of arrays with leading axis B, the prompts.
    uncond: the same for the empty prompt; not read at scale 1.
    scale: guidance strength, a Python number. 1 is no guidance and one
      network call on B images; anything else is one call on 2B.

  Returns:
    Closure (x, t) -> f32[B, h, w, C].
  """
  if scale == 1:
    return lambda x, t: velocity(x, t, cond)
  # Image and empty-prompt twin side by side, so that a batch split over
  # devices stays where it is.
  both = jax.tree.map(_interleave, cond, uncond)

  def guide(x, t):
    v = velocity(_interleave(x, x), _interleave(t, t), both)
    v, seen = v if isinstance(v, tuple) else (v, None)
    v = v.astype(jnp.float32).reshape(x.shape[0], 2, *x.shape[1:])
    v = v[:, 1] + scale * (v[:, 0] - v[:, 1])
    return v if seen is None else (v, seen[::2])

  return guide


def _interleave(a, b):
  """Two [B, ...] -> [2B, ...] as a0, b0, a1, b1, ..."""
  return jnp.stack([a, b], 1).reshape(2 * a.shape[0], *a.shape[1:])


def _put(buffer, value, index, wanted):
  """Writes buffer[index], clipped into the buffer, if wanted."""
  index = jnp.clip(index, 0, buffer.shape[0] - 1)
  old = lax.dynamic_index_in_dim(buffer, index, keepdims=False)
  value = jnp.where(wanted, value, old)
  return lax.dynamic_update_index_in_dim(buffer, value, index, 0)


def _noise(key, shape, branches, slot):
  """Standard normal f32[B, h, w, C], the same for images of one branch."""
  if branches is None:
    return jax.random.normal(key, shape, jnp.float32)
  branch = jnp.asarray(branches)[jnp.clip(slot, 0, len(branches) - 1)]
  return jax.vmap(
    lambda b: jax.random.normal(
      jax.random.fold_in(key, b), shape[1:], jnp.float32
    )
  )(branch)


def rollout(
  velocity,
  x,
  times,
  key,
  group,
  *,
  transition,
  log_prob,
  window_start,
  window,
  last_step,
  attends=False,
  branches=None,
):
  """Samples B images and keeps the W steps that the update will visit.

  Args:
    velocity: closure (x f32[B, h, w, C], t f32[B]) -> v, any float dtype.
    x: f32[B, h, w, C] initial noise.
    times: f32[K+1] from 1 to 0.
    key: PRNG key, folded with the step.
    group: i32[B] index of the prompt of each image, groups contiguous.
    transition: an entry of TRANSITIONS with its own settings bound, used
      inside the window; Euler steps elsewhere.
    log_prob: an entry of LOG_PROBS; None where nobody needs a density, as
      with the transition `ode`, and zeros are kept.
    window_start: i32[] first stochastic step, in [0, K - W]; may be traced,
      so moving the window does not compile again.
    window: W, number of stochastic steps, static.
    last_step: one of LAST_STEPS, static; with `ode` the last step must lie
      outside the window (see `check_window`).
    attends: whether `velocity` returns (v, map f32[B, h, w]); the maps of the
      window are kept.
    branches: i32[W, B] as `tree` gives, images that draw the same noise at a
      step of the window; None for noise of their own.

  Returns:
    records.Trajectory over the window. Memory holds W + 1 states, not K + 1.

  Raises:
    ValueError: unknown last_step, or a window longer than the noisy steps.
  """
  _check_name("rollout.last_step", last_step, LAST_STEPS)
  times = jnp.asarray(times, jnp.float32)
  steps = times.shape[0] - 1
  limit = steps - (last_step == "ode")
  if not 0 <= window <= limit:
    raise ValueError(
      f"rollout.window is {window}, it must be from 0 to {limit} with {steps}"
      f" steps and rollout.last_step {last_step}."
    )
  key = jax.random.fold_in(key, _STEPS)

  def step(carry, inputs):
    x, states, means, stds, maps = carry
    k, t, t_next = inputs
    out = velocity(x, jnp.broadcast_to(t, x.shape[:1]))
    field, seen = out if attends else (out, None)
    v, mean, std = transitions.propose(
      lambda x, t: field, x, t, t_next, transition=transition
    )
    drift, _ = transitions.ode(v, x, t, t_next)
    slot = k - window_start
    noise = _noise(jax.random.fold_in(key, k), x.shape, branches, slot)
    noisy = (slot >= 0) & (slot < window)
    if last_step == "noise":
      noisy |= k == steps - 1
    x = jnp.where(noisy, mean + std * noise, drift)
    # Before the window all go to entry 0, the last of them being its start.
    before_end = slot < window
    states = _put(states, x, slot + 1, before_end)
    if window:
      means = _put(means, mean, slot, before_end)
      stds = _put(stds, std, slot, before_end)
      if attends:
        maps = _put(maps, seen, slot, before_end)
    return (x, states, means, stds, maps), None

  x = x.astype(jnp.float32)
  buffers = (
    jnp.zeros((window + 1, *x.shape)).at[0].set(x),
    jnp.zeros((window, *x.shape)),
    jnp.zeros((window,)),
    jnp.zeros((window, *x.shape[:-1])) if attends else None,
  )
  (final, states, means, stds, maps), _ = lax.scan(
    step, (x, *buffers), (jnp.arange(steps), times[:-1], times[1:])
  )
  t = lax.dynamic_slice_in_dim(times, window_start, window + 1)

  def score(kept):
    t, t_next, *args = kept
    return transitions.fenced(log_prob, t, t_next)(*args)

  return records.Trajectory(
    x=states,
    t=t,
    mean=means,
    std=stds,
    log_prob=(
      jnp.zeros(states[1:].shape[:-1])
      if log_prob is None
      else lax.map(score, (t[:-1], t[1:], states[1:], means, stds))
    ),
    final=final,
    group=group,
    attention=maps,
  )
