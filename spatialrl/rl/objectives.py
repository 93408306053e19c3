r"""Policy losses of one transition, per image; anchors are added elsewhere.

Both entries are the clipped surrogate on a ratio $\rho$ per image,

  $L_i = \max(-A_i \rho_i, -A_i\,\mathrm{clip}(\rho_i, 1 - c, 1 + c))$,

and differ in $\log\rho$. Log-probs are means over channels and positions, not
sums; the published clip ranges c (1e-4, 2e-6, ...) belong to that convention.
A credit weight $w_p$ of mean 1 acts inside the ratio: outside of it a weight
of mean 1 would change nothing.
"""

import jax.numpy as jnp


def _surrogate(log_ratio, advantage, *, clip_range, adv_clip):
  """Returns the clipped loss f32[B] and its metrics.

  Args:
    log_ratio: f32[B].
    advantage: f32[B], clipped here to +-adv_clip.
    clip_range: c, dimensionless.
    adv_clip: largest absolute advantage.
  """
  if advantage.shape != log_ratio.shape:
    raise ValueError(
      f"advantage has shape {advantage.shape}, but the batch needs"
      f" {log_ratio.shape}."
    )
  ratio = jnp.exp(log_ratio)
  low, high = 1.0 - clip_range, 1.0 + clip_range
  advantage = jnp.clip(advantage, -adv_clip, adv_clip)
  loss = jnp.maximum(
    -advantage * ratio, -advantage * jnp.clip(ratio, low, high)
  )
  metrics = {
    "ratio": ratio,
    "clip_high": (ratio > high).astype(jnp.float32),
    "clip_low": (ratio < low).astype(jnp.float32),
  }
  return loss, metrics


def _log_ratio(new, old_log_prob, weight):
  """Returns f32[B], the credit-weighted mean of the log-prob change."""
  if weight.shape != new.log_prob.shape:
    raise ValueError(
      f"weight has shape {weight.shape}, but the log-probs have"
      f" {new.log_prob.shape}."
    )
  return jnp.mean(weight * (new.log_prob - old_log_prob), axis=(1, 2))


def ppo(
  new, old_mean, old_log_prob, advantage, weight, *, clip_range, adv_clip
):
  r"""Clipped surrogate on the plain ratio (Flow-GRPO, arXiv:2505.05470).

  $\log\rho_i = \mathrm{mean}_p\, w_p (\ell_p - \ell^{old}_p)$

  Args:
    new: records.Step under the policy being trained.
    old_mean: f32[B, h, w, C], unused.
    old_log_prob: f32[B, h, w] under the rollout policy.
    advantage: f32[B].
    weight: f32[B, h, w] credit, mean 1.
    clip_range: c, dimensionless; 1e-4 in the paper.
    adv_clip: largest absolute advantage; 5 in the public code.

  Returns:
    Loss f32[B], and a dict of f32[B]: `ratio`, `clip_high` and `clip_low`
    (1 where the ratio is outside the range, whatever the sign of the
    advantage), `approx_kl` (half the squared plain log-ratio).
  """
  del old_mean
  log_ratio = _log_ratio(new, old_log_prob, weight)
  loss, metrics = _surrogate(
    log_ratio, advantage, clip_range=clip_range, adv_clip=adv_clip
  )
  return loss, metrics | {"approx_kl": 0.5 * jnp.square(log_ratio)}


def ppo_guard(
  new,
  old_mean,
  old_log_prob,
  advantage,
  weight,
  *,
  clip_range,
  adv_clip,
  divide_by_interval,
):
  r"""Clipped surrogate on the centred ratio of GRPO-Guard (arXiv:2510.22319).

  With $\sigma$ the std of the step and $\Delta_p$ the shift of the mean,

  $\log\rho_i = \mathrm{mean}_p\, w_p\, \sigma\,[\ell_p - \ell^{old}_p
    + \mathrm{mean}_C \Delta_p^2 / (2 \sigma^2)]$,

  which for Gaussian log-probs is $\mathrm{mean}(w\,\epsilon\,\Delta)$, with
  $\epsilon$ the rollout's noise: under the rollout policy its mean is 0, and
  it has no factor $1/\sigma$, so one clip range acts alike at every step. The
  correction is taken image by image; the first public version reduces it over
  the whole micro-batch.

  Args:
    new: records.Step under the policy being trained, with std > 0.
    old_mean: f32[B, h, w, C] transition means of the rollout policy.
    old_log_prob: f32[B, h, w] Gaussian log-prob under the rollout policy.
    advantage: f32[B].
    weight: f32[B, h, w] credit, mean 1.
    clip_range: c, dimensionless; 2e-6 in the paper.
    adv_clip: largest absolute advantage; 5 in the public code.
    divide_by_interval: True divides the loss by t - t_next, as the paper
      does to even out the gradients of the steps.

  Returns:
    Loss f32[B], and the metrics of `ppo`.
  """
  # f32[1] or f32[B]; [B, 1, 1, 1] against [B] would give [B, 1, 1, B].
  std, interval = jnp.ravel(new.std), jnp.ravel(new.interval)
  shift = jnp.mean(jnp.square(new.mean - old_mean), axis=-1)
  bias = jnp.mean(weight * shift, axis=(1, 2)) / (2.0 * jnp.square(std))
  log_ratio = _log_ratio(new, old_log_prob, weight)
  loss, metrics = _surrogate(
    std * (log_ratio + bias),
    advantage,
    clip_range=clip_range,
    adv_clip=adv_clip,
  )
  if divide_by_interval:
    loss = loss / interval
  return loss, metrics | {"approx_kl": 0.5 * jnp.square(log_ratio)}


OBJECTIVES = {
  "ppo": ppo,
  "ppo_guard": ppo_guard,
}
