"""The records that travel between the slots of the pipeline; no maths here."""

import dataclasses

import jax


def _pytree(cls):
  """Makes `cls` a frozen dataclass that JAX can flatten."""
  frozen = dataclasses.dataclass(frozen=True)(cls)
  return jax.tree_util.register_dataclass(frozen)


@_pytree
class Conditioning:
  """Encoded prompts: what the velocity network sees of the text.

  Attributes:
    text: f32[B, L, D] token states.
    pooled: f32[B, P] one vector per prompt, for modulation.
    mask: bool[B, L], True where a token is real and not padding.
  """

  text: jax.Array
  pooled: jax.Array
  mask: jax.Array


@_pytree
class Trajectory:
  """One rollout, kept over the W steps that the update will visit.

  Attributes:
    x: f32[W+1, B, h, w, C]; kept step k goes from x[k] to x[k+1].
    t: f32[W+1] times of those states, decreasing, 1 = noise.
    mean: f32[W, B, h, w, C] transition means under the rollout policy.
    log_prob: f32[W, B, h, w] of x[k+1], averaged over channels.
    final: f32[B, h, w, C] latents to decode and score.
    group: i32[B] index of the prompt of each image, groups contiguous.
  """

  x: jax.Array
  t: jax.Array
  mean: jax.Array
  log_prob: jax.Array
  final: jax.Array
  group: jax.Array


@_pytree
class Step:
  """One transition of a batch, evaluated under some policy.

  Attributes:
    velocity: f32[B, h, w, C] network output.
    mean: f32[B, h, w, C] mean of the next state.
    log_prob: f32[B, h, w] of the stored next state, averaged over channels.
    std: f32[], standard deviation of the whole step.
    interval: f32[], t - t_next, positive.
  """

  velocity: jax.Array
  mean: jax.Array
  log_prob: jax.Array
  std: jax.Array
  interval: jax.Array


@_pytree
class Signals:
  """What one judge says of B images; None where it does not speak.

  Attributes:
    scalar: f32[B], higher is better; -inf marks a failed score.
    pair: f32[P, G, G], share of wins of image i over image j.
    map: f32[B, h, w], per latent position.
    sigma: f32[B], standard deviation of `scalar`, same unit.
  """

  scalar: jax.Array | None = None
  pair: jax.Array | None = None
  map: jax.Array | None = None
  sigma: jax.Array | None = None


@_pytree
class UpdateBatch:
  """What the update needs of a rollout, after selection.

  Attributes:
    trajectory: the kept images only.
    conditioning: text states of the same images.
    advantage: f32[B].
    keep: bool[B]; False rows are padding and carry no gradient.
    weight: f32[W, B, h, w] credit, mean 1 over what is active.
  """

  trajectory: Trajectory
  conditioning: Conditioning
  advantage: jax.Array
  keep: jax.Array
  weight: jax.Array
