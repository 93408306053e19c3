"""Edits as rollouts: from the re-noised image along the editor's path."""

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.flow import rollout as rollouts
from spatialrl.flow.schedules import shifted
from spatialrl.flow.transition import ode
from spatialrl.scenes import check, instructions, oracle


def times(editor, *, steps, shift):
  """f32[steps + 1] from the editor's start to 0."""
  return editor.start * jnp.asarray(shifted(steps, shift=shift))


def condition(editor, params, images, ids, region):
  """Conditioning of edits.

  Args:
    editor: Editor.
    params: its weights.
    images: u8[B, S, S, 3], the sources.
    ids: i32[B, LENGTH] of the instructions.
    region: bool[B, h, w], what may change.

  Returns:
    Conditioning with `source`.
  """
  source = editor.to_latents(params, images.astype(jnp.float32) / 127.5 - 1)
  mask = ids != instructions.PAD
  return editor.encode(params, ids, mask, source, region)


def rollout(
    editor, params, trainable, cond, times, key, group, *, transition=ode,
    log_prob=None, window_start=0, window=0, shared_noise=True,
):
  """Edits B images and keeps the W steps that an update will visit.

  Args:
    editor: Editor.
    params: its frozen weights.
    trainable: network weights to use instead, or None.
    cond: Conditioning as `condition` gives.
    times: f32[K + 1] of `times`.
    key: PRNG key.
    group: i32[B], which rows share the noise that their image gets.
    transition: entry of TRANSITIONS with its settings bound.
    log_prob: entry of LOG_PROBS; None without a window.
    window_start: first noisy step.
    window: W, noisy steps; 0 is the ODE.
    shared_noise: whether a group shares its noise.

  Returns:
    records.Trajectory.
  """
  channels = editor.latent_shape[-1]
  noise = rollouts.initial_noise(
      key, group, editor.latent_shape, shared=shared_noise
  )
  return rollouts.rollout(
      lambda x, t: editor.velocity(params, trainable, x, t, cond),
      editor.renoised(cond.source[..., :channels], noise),
      times,
      key,
      group,
      transition=transition,
      log_prob=log_prob,
      window_start=window_start,
      window=window,
      last_step="ode",
  )


def to_uint8(images):
  """f32[...] in [-1, 1] to u8[...], inside jit."""
  return jnp.clip(jnp.rint((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def pasted(made, source, region):
  """What an edit made inside of its region, and the source's pixels outside.

  The decoder looks beyond the region's edge: without this the error outside is
  three times that of a pure reconstruction (experiments/rl_rig), and each round
  adds to it.

  Args:
    made: u8[B, S, S, 3].
    source: u8[B, S, S, 3].
    region: bool[B, h, w].

  Returns:
    u8[B, S, S, 3].
  """
  fold = source.shape[1] // region.shape[1]
  inside = jnp.repeat(jnp.repeat(region, fold, axis=1), fold, axis=2)
  return jnp.where(inside[..., None], made, source)


def found_boxes(images):
  """The most confident box of every label, by the detector.

  Args:
    images: u8[B, S, S, 3].

  Returns:
    list of B dicts from label to f32[4], shares of the image's side.
  """
  boxes = []
  for detections in oracle.detect(np.asarray(images)):
    best = {}
    for found in detections:  # highest score first
      if found.score > check.THRESHOLD:
        best.setdefault(found.label, found.box)
    boxes.append(best)
  return boxes


def regions(told, boxes, side):
  """bool[B, side, side]; see `instructions.region`."""
  return np.stack([
      instructions.region(instruction, found, side)
      for instruction, found in zip(told, boxes, strict=True)
  ])


def token_ids(told):
  """i32[B, LENGTH] of B Instructions, all padding where there is None."""
  ids = np.full((len(told), instructions.LENGTH), instructions.PAD, np.int32)
  rows = [i for i, instruction in enumerate(told) if instruction is not None]
  ids[rows] = instructions.encode([told[i] for i in rows])
  return ids


class Inverse:
  """The compiled Inverse Diffuser; call it with images and instructions."""

  def __init__(self, editor, *, steps, shift):
    """Args: Editor, sampling steps, and the shift of their times."""
    self.editor, self.steps = editor, steps
    self._times = times(editor, steps=steps, shift=shift)
    self._edit = jax.jit(self._run)

  def __call__(self, params, trainable, images, told, boxes, key, group):
    """Applies one instruction to each image.

    Args:
      params: weights of the editor.
      trainable: network weights to use instead, or None.
      images: u8[B, S, S, 3].
      told: list of B Instruction; None leaves an image as it is.
      boxes: as `found_boxes` gives.
      key: PRNG key.
      group: i32[B], rows of one noise.

    Returns:
      (u8[B, S, S, 3], region bool[B, h, w]).
    """
    region = regions(told, boxes, self.editor.latent_shape[0])
    ids = token_ids(told)
    out = self._edit(params, trainable, images, ids, region, key, group)
    return np.asarray(out), region

  def _run(self, params, trainable, images, ids, region, key, group):
    cond = condition(self.editor, params, images, ids, region)
    path = rollout(
        self.editor, params, trainable, cond, self._times, key, group
    )
    made = to_uint8(self.editor.decode(params, path.final))
    return pasted(made, images, region)
