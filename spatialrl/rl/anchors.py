"""What holds the policy near its reference: one non-negative number per image.

Those of WEIGHT_ANCHORS look at the weights instead and give one number; those
of VIEW_ANCHORS take (view, k, key), like an objective, and ask the network.

`new` and `reference` are the same transition under the trained and the frozen
policy. Squares are averaged over positions and channels, like the log-probs.
"""

import jax
import jax.numpy as jnp

from spatialrl.rl import forward

_REPLAY = 1  # keeps its noise apart from the objective's


def _mean_square(a, b):
  """Returns f32[B], the mean of (a - b)^2 over all axes but the first."""
  return jnp.mean(jnp.square(a - b), axis=(1, 2, 3))


def none(new, reference):
  """Returns f32[B] zeros: the policy is free."""
  del reference
  return jnp.zeros(new.mean.shape[0], jnp.float32)


def kl(new, reference):
  r"""Divergence of the two transitions, per latent dimension.

  $\mathrm{mean}(\Delta\mu^2) / (2\,\mathrm{std}^2)$ with the std of the whole
  step (Flow-GRPO, arXiv:2505.05470, its paper). Needs std > 0.

  Args:
    new: records.Step under the trained policy.
    reference: records.Step under the frozen policy.

  Returns:
    f32[B].
  """
  shift = _mean_square(new.mean, reference.mean)
  return shift / (2.0 * jnp.square(jnp.ravel(new.std)))


def kl_published(new, reference):
  r"""The penalty that Flow-GRPO's public code computes under the name of KL.

  $\mathrm{mean}(\Delta\mu^2) / (2 g^2)$ with $g = \mathrm{std}/\sqrt{h}$ and h
  the interval: `kl` times h. The published weights (0.04, 0.01) belong to
  this form. Needs std > 0.

  Args:
    new: records.Step under the trained policy.
    reference: records.Step under the frozen policy.

  Returns:
    f32[B].
  """
  return jnp.ravel(new.interval) * kl(new, reference)


def velocity_mse(new, reference):
  """Mean squared difference of the two velocities, the same at every step.

  Args:
    new: records.Step under the trained policy.
    reference: records.Step under the frozen policy.

  Returns:
    f32[B].
  """
  return _mean_square(new.velocity, reference.velocity)


def weight_to_init(params, start):
  r"""Squared distance of the trained weights from where they started.

  $|\theta - \theta_0|^2$, a sum over weights (R0; not checked against a
  source). It acts on the gradient once an optimizer step, whatever the
  objective visits.

  Args:
    params: pytree of the trained weights.
    start: pytree of the same shape.

  Returns:
    f32[].
  """
  squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), params, start)
  return sum(jax.tree.leaves(squares))


def fm_replay(view, k, key, *, time_shift):
  r"""Flow matching on trusted images: the loss of pretraining goes on.

  $|v - (\epsilon - x^{trust}_0)|^2$ at a random time. SRUM's public code holds
  the policy to a trusted image of the prompt, IterComp to pretraining data; a
  trusted image here is a render of the prompt.

  Args:
    view: View, of a batch with `trusted`.
    k: i32[], index of the visit.
    key: PRNG key of the optimizer step.
    time_shift: towards noise, see `forward.noised`.

  Returns:
    f32[B].
  """
  key = jax.random.fold_in(jax.random.fold_in(key, k), _REPLAY)
  x_t, t, target = forward.noised(
    view.batch.trusted, key, 0, draws=1, time_shift=time_shift
  )
  error = forward.flow_error(view.velocity(x_t, t), target)
  return jnp.mean(error, (1, 2))


VIEW_ANCHORS = {"fm_replay": fm_replay}
WEIGHT_ANCHORS = {"weight_to_init": weight_to_init}
# Those that compare transitions, not only velocities.
PATH_ANCHORS = ("kl", "kl_published")
ANCHORS = VIEW_ANCHORS | WEIGHT_ANCHORS | {
  "none": none,
  "kl": kl,
  "kl_published": kl_published,
  "velocity_mse": velocity_mse,
}
