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
    source: f32[B, h, w, C + 1], latents of the image that is edited and, last,
      the region that may change, 1 or 0; None where nothing is edited.
  """

  text: jax.Array
  pooled: jax.Array
  mask: jax.Array
  source: jax.Array | None = None


@_pytree
class Trajectory:
  """One rollout, kept over the W steps that the update will visit.

  Attributes:
    x: f32[W+1, B, h, w, C]; kept step k goes from x[k] to x[k+1].
    t: f32[W+1] times of those states, decreasing, 1 = noise.
    mean: f32[W, B, h, w, C] transition means under the rollout policy.
    std: f32[W] of the transitions.
    log_prob: f32[W, B, h, w] of x[k+1], averaged over channels.
    final: f32[B, h, w, C] latents to decode and score.
    group: i32[B] index of the prompt of each image, groups contiguous.
    attention: f32[W, B, h, w], how much each position attends to the prompt's
      core words at the start of each step; None if nobody asked.
  """

  x: jax.Array
  t: jax.Array
  mean: jax.Array
  std: jax.Array
  log_prob: jax.Array
  final: jax.Array
  group: jax.Array
  attention: jax.Array | None = None


@_pytree
class Step:
  """What some policy says at one time: of a transition, or of a state alone.

  Attributes:
    velocity: f32[B, h, w, C] network output.
    mean: f32[B, h, w, C] mean of the next state; None without a transition,
      as are the rest.
    log_prob: f32[B, h, w] of the stored next state, averaged over channels.
    std: f32[], standard deviation of the whole step.
    interval: f32[], t - t_next, positive.
  """

  velocity: jax.Array
  mean: jax.Array | None = None
  log_prob: jax.Array | None = None
  std: jax.Array | None = None
  interval: jax.Array | None = None


@_pytree
class Signals:
  """What one judge says of B images; None where it does not speak.

  Attributes:
    scalar: f32[B], higher is better; -inf marks a failed score.
    pair: f32[P, G, G], share of wins of image i over image j.
    map: f32[B, h, w], per latent position.
    sigma: f32[B], standard deviation of `scalar`, same unit.
    trusted_map: f32[B, h, w], per latent position of the trusted image.
  """

  scalar: jax.Array | None = None
  pair: jax.Array | None = None
  map: jax.Array | None = None
  sigma: jax.Array | None = None
  trusted_map: jax.Array | None = None


@_pytree
class UpdateBatch:
  """What the update needs of a rollout, after selection.

  Attributes:
    trajectory: the kept images only.
    conditioning: text states of the same images.
    ids: i32[B, L] token ids of their prompts, for judges inside the gradient.
    reward: f32[B], what the advantage was made of.
    advantage: f32[1 or W, B, 1 or h, 1 or w].
    keep: bool[B]; False rows are padding and carry no gradient.
    weight: f32[W, B, h, w] credit, mean 1 over what is active.
    visits: i32[n], the window steps that the update visits.
    trusted: f32[M, h, w, C], latents of an image of each prompt that is known
      to be right; None where no slot looks at it, and so is the next.
    contrast: text states of prompts that contradict those of the images.
  """

  trajectory: Trajectory
  conditioning: Conditioning
  ids: jax.Array
  reward: jax.Array
  advantage: jax.Array
  keep: jax.Array
  weight: jax.Array
  visits: jax.Array
  trusted: jax.Array | None = None
  contrast: Conditioning | None = None


_NO_ROWS = -1
# Which axis of every array of an UpdateBatch counts images.
_ROW_AXES = UpdateBatch(
  trajectory=Trajectory(
    x=1, t=_NO_ROWS, mean=1, std=_NO_ROWS, log_prob=1, final=0, group=0,
    attention=1,
  ),
  conditioning=Conditioning(text=0, pooled=0, mask=0, source=0),
  ids=0,
  reward=0,
  advantage=1,
  keep=0,
  weight=1,
  visits=_NO_ROWS,
  trusted=0,
  contrast=Conditioning(text=0, pooled=0, mask=0),
)


def map_rows(function, batch):
  """Applies `function(array, axis)` to all arrays of a batch.

  Args:
    function: gets an array and its axis of images, or None where it has none.
    batch: UpdateBatch.

  Returns:
    UpdateBatch of what it returned.
  """

  def visit(axis, value):
    if value is None:
      return None
    if dataclasses.is_dataclass(axis):
      parts = {
        field.name: visit(
          getattr(axis, field.name), getattr(value, field.name)
        )
        for field in dataclasses.fields(axis)
      }
      return dataclasses.replace(value, **parts)
    return function(value, None if axis == _NO_ROWS else axis)

  return visit(_ROW_AXES, batch)
