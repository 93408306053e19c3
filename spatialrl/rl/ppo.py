r"""Policy gradients of one transition, per image; anchors are added elsewhere.

All entries are the clipped surrogate on a ratio $\rho$,

  $L_i = \max(-A_i \rho_i, -A_i\,\mathrm{clip}(\rho_i, 1 - c, 1 + c))$,

and differ in $\rho$: one an image (`ppo`, `ppo_guard`), one a position
(`ppo_position`), or one value an image with the gradient of each position
(`ppo_sequence`). Log-probs are means over channels and positions, not
sums; the published clip ranges c (1e-4, 2e-6, ...) belong to that convention.
A credit weight $w_p$ of mean 1 acts inside the ratio: outside of it a weight
of mean 1 would change nothing.
"""

import jax
import jax.numpy as jnp


def _surrogate(log_ratio, advantage, *, clip_range, adv_clip):
  """Returns the clipped loss f32[B] and its metrics.

  Args:
    log_ratio: f32[B], or f32[B, h, w].
    advantage: of the same shape, clipped here to +-adv_clip.
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


def _check_weight(weight, log_prob):
  if weight.shape != log_prob.shape:
    raise ValueError(
      f"weight has shape {weight.shape}, but the log-probs have"
      f" {log_prob.shape}."
    )


def _log_ratio(new, old_log_prob, weight):
  """Returns f32[B], the credit-weighted mean of the log-prob change."""
  _check_weight(weight, new.log_prob)
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


def ppo_position(
  new, old_mean, old_log_prob, advantage, weight, *, clip_range, adv_clip
):
  r"""Clipped surrogate on a ratio per latent position (STAR).

  $L_i = \mathrm{mean}_p\, w_p \max(-A_{i,p}\rho_p,
    -A_{i,p}\,\mathrm{clip}(\rho_p, 1 - c, 1 + c))$,
  $\rho_p = \exp(\ell_p - \ell^{old}_p)$

  STAR (arXiv:2606.17979) is known from its abstract; this is our reading of
  its "spatially resolved policy objective". Log-probs of single positions
  spread about $\sqrt{P}$ wider than their mean over P positions, so clip ranges
  are larger by that factor than those of `ppo`.

  Args:
    new: records.Step under the policy being trained.
    old_mean: f32[B, h, w, C], unused.
    old_log_prob: f32[B, h, w] under the rollout policy.
    advantage: f32[B], or f32[B, h, w] where positions have their own.
    weight: f32[B, h, w] credit, mean 1.
    clip_range: c of one position, dimensionless.
    adv_clip: largest absolute advantage.

  Returns:
    Loss f32[B], and the metrics of `ppo`; shares of clipped positions.
  """
  del old_mean
  _check_weight(weight, new.log_prob)
  log_ratio = new.log_prob - old_log_prob
  loss, metrics = _surrogate(
    log_ratio,
    _by_position(advantage, log_ratio),
    clip_range=clip_range,
    adv_clip=adv_clip,
  )
  metrics |= {"approx_kl": 0.5 * jnp.square(jnp.mean(log_ratio, (1, 2)))}
  return jnp.mean(weight * loss, (1, 2)), {
    name: value if value.ndim == 1 else jnp.mean(value, (1, 2))
    for name, value in metrics.items()
  }


def ppo_sequence(
  new, old_mean, old_log_prob, advantage, weight, *, clip_range, adv_clip
):
  r"""Clipped surrogate whose ratio has the image's value and local gradients.

  $s_p = \mathrm{sg}(\rho)\, \pi_p / \mathrm{sg}(\pi_p)$ with
  $\log\rho = \mathrm{mean}_p (\ell_p - \ell^{old}_p)$, and
  $L_i = \mathrm{mean}_p\, w_p \max(-A_{i,p} s_p, ...)$ (GSPO's token form; used
  by ImageDoctor, arXiv:2510.01010, read in a note on the paper).

  Args:
    new: records.Step under the policy being trained.
    old_mean: f32[B, h, w, C], unused.
    old_log_prob: f32[B, h, w] under the rollout policy.
    advantage: f32[B], or f32[B, h, w] where positions have their own.
    weight: f32[B, h, w] credit, mean 1.
    clip_range: c, dimensionless, as for `ppo`.
    adv_clip: largest absolute advantage.

  Returns:
    Loss f32[B], and the metrics of `ppo`.
  """
  del old_mean
  _check_weight(weight, new.log_prob)
  log_ratio = jnp.mean(new.log_prob - old_log_prob, (1, 2))
  shared = jax.lax.stop_gradient(log_ratio)[:, None, None]
  local = new.log_prob - jax.lax.stop_gradient(new.log_prob)
  loss, metrics = _surrogate(
    shared + local,
    _by_position(advantage, local),
    clip_range=clip_range,
    adv_clip=adv_clip,
  )
  metrics |= {"approx_kl": 0.5 * jnp.square(log_ratio)}
  return jnp.mean(weight * loss, (1, 2)), {
    name: value if value.ndim == 1 else jnp.mean(value, (1, 2))
    for name, value in metrics.items()
  }


def _by_position(advantage, log_ratio):
  """f32[B] or f32[B, h, w] -> f32[B, h, w]."""
  if advantage.shape == log_ratio.shape[:1]:
    advantage = advantage[:, None, None]
  elif advantage.shape != log_ratio.shape:
    raise ValueError(
      f"advantage has shape {advantage.shape}, but the batch needs"
      f" {log_ratio.shape[:1]} or {log_ratio.shape}."
    )
  return jnp.broadcast_to(advantage, log_ratio.shape)


PPO = {
  "ppo": ppo,
  "ppo_guard": ppo_guard,
  "ppo_position": ppo_position,
  "ppo_sequence": ppo_sequence,
}
