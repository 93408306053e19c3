r"""Losses on finished images noised again: no path, no likelihood.

An image x0 of the rollout becomes x_t = (1 - t) x0 + t eps with fresh noise;
its target is eps - x0.
"""

import jax
import jax.numpy as jnp


def noised(x0, key, k, *, draws, time_shift, group=None):
  """One of `draws` noisy copies of each image.

  Args:
    x0: f32[M, h, w, C].
    key: PRNG key, the same for all k.
    k: i32[], which of the draws; times are spread over (0, 1) by it.
    draws: number of them.
    time_shift: s >= 1; u in (0, 1) becomes t = s u / (1 + (s - 1) u).
    group: i32[M]; images of a group share noise and time. None: none do.

  Returns:
    (x_t f32[M, h, w, C], t f32[M], target f32[M, h, w, C]).
  """
  rows = x0.shape[0]
  time_key, noise_key = jax.random.split(jax.random.fold_in(key, k))
  u = jax.random.uniform(time_key, (rows,))
  noise = jax.random.normal(noise_key, x0.shape)
  if group is not None:
    first = jnp.argmax(group[:, None] == group[None], axis=1)
    u, noise = u[first], noise[first]
  u = (k + u) / draws
  t = time_shift * u / (1 + (time_shift - 1) * u)
  t_ = t[:, None, None, None]
  return (1 - t_) * x0 + t_ * noise, t, noise - x0


def flow_error(v, target):
  """Mean squared error of a velocity per position, f32[M, h, w]."""
  return jnp.mean(jnp.square(v.astype(jnp.float32) - target), axis=-1)


def nft(v, v_old, x0, x_t, t, advantage, *, mix, adv_clip, adaptive=True):
  r"""DiffusionNFT (arXiv:2509.16117): fit a better and a worse velocity.

  With $q = \mathrm{clip}(1/2 + A / 2 A_{max}, 0, 1)$,
  $v^+ = (1-b) v_{old} + b v$, $v^- = (1+b) v_{old} - b v$ and
  $x_0^\pm = x_t - t v^\pm$,

  $L = A_{max} [ q\,|x_0^+ - x_0|^2 / w^+ + (1-q)\,|x_0^- - x_0|^2 / w^- ] / b$

  where $w^\pm$ is the mean of $|x_0^\pm - x_0|$ without gradient. Without w the
  gradient is that of signed regression on the old policy plus a proximal term.

  Args:
    v: f32[M, h, w, C] of the policy being trained.
    v_old: f32[M, h, w, C] of the policy that drew x0, no gradient.
    x0: f32[M, h, w, C].
    x_t: f32[M, h, w, C].
    t: f32[M].
    advantage: f32[M].
    mix: b > 0; 1 for GenEval and PickScore in the paper, 0.1 for OCR.
    adv_clip: A_max; 5.
    adaptive: whether to divide by w, as the public code does.

  Returns:
    f32[M].
  """
  share = jnp.clip(advantage, -adv_clip, adv_clip) / (2 * adv_clip) + 0.5
  t_ = t[:, None, None, None]

  def error(velocity):
    gap = (x_t - t_ * velocity) - x0
    square = jnp.mean(jnp.square(gap), (1, 2, 3))
    if not adaptive:
      return square
    size = jnp.mean(jnp.abs(jax.lax.stop_gradient(gap)), (1, 2, 3))
    return square / jnp.maximum(size, 1e-5)

  better = error((1 - mix) * v_old + mix * v)
  worse = error((1 + mix) * v_old - mix * v)
  return adv_clip * (share * better + (1 - share) * worse) / mix
