"""Objectives that regress velocities on finished images, drawn or trusted.

Entries of the slot `objectives`, which says how they are called. They need no
density of a transition, so any sampler may have drawn the images.
"""

import jax
import jax.numpy as jnp

from spatialrl.rl import forward


def nft(view, k, key, *, draws, time_shift, mix, adv_clip):
  """DiffusionNFT on the finished images; see `forward.nft`.

  Args:
    view: View.
    k: i32[], index of the draw.
    key: PRNG key of the optimizer step.
    draws: noisy copies of each image.
    time_shift: towards noise, see `forward.noised`.
    mix: b of the paper.
    adv_clip: A_max of the paper.

  Returns:
    As `objectives` says.
  """
  x0 = view.batch.trajectory.final
  x_t, t, _ = forward.noised(x0, key, k, draws=draws, time_shift=time_shift)
  v = view.velocity(x_t, t)
  v_old = view.velocity(x_t, t, "old")
  loss = forward.nft(
    v, v_old, x0, x_t, t, view.advantage(0), mix=mix, adv_clip=adv_clip
  )
  moved = jnp.mean(jnp.square(v - v_old), (1, 2, 3))
  return loss, {"old_distance": moved}, view.anchored_at(x_t, t, v)


def weighted_fm(view, k, key, *, draws, time_shift):
  r"""Flow matching on the policy's own images, weighted by credit and reward.

  $L_i = A_i\, \mathrm{mean}_p\, w_p\, |v - (\epsilon - x_0)|^2_p$: with
  advantage `raw` and a reward of 1, plain regression; with a credit map,
  SRUM's and PatchDPO's weighted regression.

  Args:
    view: View.
    k: i32[], index of the draw.
    key: PRNG key of the optimizer step.
    draws: noisy copies of each image.
    time_shift: towards noise, see `forward.noised`.

  Returns:
    As `objectives` says.
  """
  batch = view.batch
  x_t, t, target = forward.noised(
    batch.trajectory.final, key, k, draws=draws, time_shift=time_shift
  )
  v = view.velocity(x_t, t)
  error = jnp.mean(batch.weight[0] * forward.flow_error(v, target), (1, 2))
  loss = view.advantage(0) * error
  return loss, {"error": error}, view.anchored_at(x_t, t, v)


def patch_fm(view, k, key, *, draws, time_shift):
  r"""PatchDPO (arXiv:2412.03177): regression on two images, place by place.

  $L_i = \mathrm{mean}_p\,[w_p\,e_p(x_0) + w^{trust}_p\,e_p(x^{trust}_0)]$ with
  e the flow-matching error and the weights those of the credit
  `patch_quality`. No reference model, no logistic and no reward, as in the
  public code; the images share noise and time (ours).

  Args:
    view: View, of a batch with `trusted`.
    k: i32[], index of the draw.
    key: PRNG key of the optimizer step.
    draws: noisy copies of each image.
    time_shift: towards noise, see `forward.noised`.

  Returns:
    As `objectives` says.
  """
  batch = view.batch
  seen, errors = [], []
  images = (batch.trajectory.final, batch.trusted)
  for x0, weight in zip(images, batch.weight, strict=True):
    x_t, t, target = forward.noised(
      x0, key, k, draws=draws, time_shift=time_shift
    )
    v = view.velocity(x_t, t)
    seen.append((x_t, t, v))
    errors.append(jnp.mean(weight * forward.flow_error(v, target), (1, 2)))
  metrics = {"own_error": errors[0], "trusted_error": errors[1]}
  return sum(errors), metrics, view.anchored_at(*seen[0])


def contrastive_fm(
  view, k, key, *, draws, time_shift, scale, temperature, others
):
  r"""SoftREPA (arXiv:2503.08250): an image's error is lowest under its prompt.

  $L_i = -\log \mathrm{softmax}_j\,(s\, e^{-E_{ij} / T})_i$ with $E_{ij}$ the
  flow-matching error of trusted image i under prompt j, one noise and time for
  all j. j runs over the image's own prompt, that prompt with one relation
  flipped (ours; the paper's abstract has the prompts of the batch) and
  `others` prompts of other groups. The public code learns s and T as well.

  Args:
    view: View, of a batch with `trusted` and `contrast`, groups contiguous.
    k: i32[], index of the draw.
    key: PRNG key of the optimizer step.
    draws: noisy copies of each image.
    time_shift: towards noise, see `forward.noised`.
    scale: s > 0.
    temperature: T > 0, in units of the error.
    others: prompts of other groups, fewer than there are groups.

  Returns:
    As `objectives` says; the share of images whose own prompt has the lowest
    error is `retrieved`.
  """
  batch = view.batch
  x_t, t, target = forward.noised(
    batch.trusted, key, k, draws=draws, time_shift=time_shift,
    group=jnp.zeros_like(batch.trajectory.group),
  )
  group = batch.trajectory.group
  size = jnp.sum(group == group[0])
  texts = [(), (batch.contrast,)]
  for place in range(1, others + 1):
    moved = jax.tree.map(
      lambda a, n=place: jnp.roll(a, n * size, 0), batch.conditioning
    )
    texts.append((moved,))
  fields = [view.velocity(x_t, t, text=text) for text in texts]
  errors = jnp.stack(
    [forward.flow_error(v, target).mean((1, 2)) for v in fields], 1
  )
  logits = scale * jnp.exp(-errors / temperature)
  loss = -jax.nn.log_softmax(logits)[:, 0]
  retrieved = (jnp.argmin(errors, 1) == 0).astype(jnp.float32)
  metrics = {"retrieved": retrieved, "error": errors[:, 0]}
  return loss, metrics, view.anchored_at(x_t, t, fields[0])


MATCHING = {
  "nft": nft,
  "weighted_fm": weighted_fm,
  "patch_fm": patch_fm,
  "contrastive_fm": contrastive_fm,
}
