"""The transformer of FLUX.1: two streams that join, rotary positions.

Black Forest Labs, 2024, as diffusers' `FluxTransformer2DModel` has it. Latents
stay unpacked outside; squares of 2 x 2 positions become one token inside.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from spatialrl.models import layers
from spatialrl.models.flux_blocks import DoubleBlock, FluxConfig, SingleBlock

_PATCH = 2
_zeros = nn.initializers.zeros


class Flux(nn.Module):
  """Velocity prediction for latents under encoded text.

  Call with x f32[B, h, w, C], t f32[B] in [0, 1], text [B, L, D_text], pooled
  [B, P] and guidance f32[B], a scale (3.5 is usual), or None where the config
  has none; returns f32[B, h, w, C]. Attention sees all of the text, padding
  too, as in the published pipeline. With words bool[B, L] and blocks, a tuple
  of indices that count double blocks first, it returns besides how much each
  latent position looks at those words, f32[B, h, w] of mean 1; see
  `attention.word_map`.

  Raises:
    ValueError: for odd h or w, for guidance where the config has none or none
      where it has, for text of other widths, for blocks that do not exist.
  """

  config: FluxConfig

  @nn.compact
  def __call__(
      self,
      x,
      t,
      text,
      pooled,
      words=None,
      blocks=(),
      guidance=None,
  ):
    c = self.config
    dense = functools.partial(nn.Dense, dtype=c.dtype)
    mlp = functools.partial(layers.MLP, c.width, c.dtype)
    layers.check_text(c, text, pooled)
    if c.guidance != (guidance is not None):
      raise ValueError(
          f"guidance is {'missing' if c.guidance else 'given'}; the network's"
          f" config has guidance {c.guidance}."
      )
    rows, columns = x.shape[1] // _PATCH, x.shape[2] // _PATCH
    image = dense(c.width, name="patch_embed")(pack(x))
    text = dense(c.width, name="context_embed")(text)
    vector = mlp(name="time_embed")(layers.time_features(t))
    if c.guidance:
      features = layers.time_features(guidance)
      vector = vector + mlp(name="guidance_embed")(features)
    vector = vector + mlp(name="pooled_embed")(pooled)
    for name, value in (("image", image), ("text", text), ("vector", vector)):
      self.sow("intermediates", name, value)
    vector = nn.silu(vector)

    chosen = layers.chosen_blocks(words, blocks, c.doubles + c.singles)
    turns = _with_text(rotary(rows, columns, c.axes), text.shape[1])
    (image, text), seen = _stack(c, DoubleBlock, c.doubles, "double_blocks")(
        (image, text),
        (
            _modulations(c, vector, c.doubles, 6, "image_modulations"),
            _modulations(c, vector, c.doubles, 6, "text_modulations"),
        ),
        *layers.asked(words, chosen[: c.doubles]),
        turns,
    )
    maps = [] if seen is None else [seen.sum(0)]
    both, seen = _stack(c, SingleBlock, c.singles, "single_blocks")(
        jnp.concatenate([image, text], axis=1),
        _modulations(c, vector, c.singles, 3, "modulations"),
        *layers.asked(words, chosen[c.doubles :]),
        turns,
    )
    maps += [] if seen is None else [seen.sum(0)]

    shift_scale = dense(2 * c.width, kernel_init=_zeros, name="norm_out")
    scale, shift = jnp.split(shift_scale(vector)[:, None], 2, axis=-1)
    image = layers.normed(both[:, : image.shape[1]]) * (1 + scale) + shift
    out = dense(
        _PATCH**2 * c.channels, kernel_init=_zeros, name="proj_out"
    )(image)
    out = unpack(out.astype(jnp.float32), rows, columns)
    if words is None:
      return out
    return out, layers.spread(sum(maps) / len(blocks), rows, columns, _PATCH)


def pack(x):
  """Squares of 2 x 2 latents as tokens, channels first within them.

  f32[B, h, w, C] -> f32[B, h w / 4, 4 C], as the pipeline of diffusers does.

  Raises:
    ValueError: for odd h or w.
  """
  batch, height, width, channels = x.shape
  if height % _PATCH or width % _PATCH:
    raise ValueError(
        f"latents are {height} x {width}; both must be multiples of {_PATCH}."
    )
  rows, columns = height // _PATCH, width // _PATCH
  x = x.reshape(batch, rows, _PATCH, columns, _PATCH, channels)
  return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, rows * columns, -1)


def unpack(tokens, rows, columns):
  """The inverse of `pack` for an image of rows x columns tokens."""
  x = tokens.reshape(tokens.shape[0], rows, columns, -1, _PATCH, _PATCH)
  x = x.transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(tokens.shape[0], rows * _PATCH, columns * _PATCH, -1)


def rotary(rows, columns, axes):
  """(cos, sin) of the angles by which channels turn: f32[rows * columns, d].

  Pair j of the d_a channels of axis a turns by place / 10000^(2 j / d_a); a
  place is (0, row, column). Su et al., arXiv:2104.09864.
  """
  row, column = np.mgrid[:rows, :columns].reshape(2, -1)
  angles = [
      place[:, None] / 10000 ** (np.arange(0, size, 2) / size)
      for place, size in zip((0 * row, row, column), axes, strict=True)
  ]
  angles = np.concatenate(angles, axis=-1).repeat(2, axis=-1)
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _with_text(turns, length):
  """The tables with rows for text, which sits at the origin and never turns."""
  cos, sin = turns
  still = np.zeros((length, cos.shape[1]), np.float32)
  return np.concatenate([cos, still + 1]), np.concatenate([sin, still])


def _stack(config, block, length, name):
  axes = (0, nn.broadcast, 0, nn.broadcast)
  return layers.scanned(block, length, config.remat, axes)(config, name=name)


def _modulations(config, vector, length, parts, name):
  """Shifts, scales and gates of a whole stack: [B, D] -> [length, B, parts D].

  Not in the blocks, where the kernels, a quarter of all weights, would have to
  be gathered in every step of the scan, for the product with a single vector.
  """
  stacked = nn.vmap(
      nn.Dense,
      variable_axes={"params": 0, "lora": 0},
      split_rngs={"params": True},
      in_axes=None,
      axis_size=length,
  )
  return stacked(
      parts * config.width, dtype=config.dtype, kernel_init=_zeros, name=name
  )(vector)
