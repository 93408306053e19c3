"""The transformer of FLUX.1: two streams that join, rotary positions.

Black Forest Labs, 2024, as diffusers' `FluxTransformer2DModel` has it. Latents
stay unpacked outside; squares of 2 x 2 positions become one token inside.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.models import layers
from spatialrl.models.attention import attend

_PATCH = 2
_zeros = nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class FluxConfig:
  """Sizes of a FLUX.1 transformer; the defaults are those of FLUX.1-dev.

  Attributes:
    width: D, channels of both streams.
    doubles: blocks in which image and text have weights of their own.
    singles: blocks after them, in which they share weights.
    heads: attention heads; must divide `width`.
    channels: C of the latents.
    axes: channels of a head that turn with each coordinate of a place: one
      that is always 0, the row, the column. Even, together width / heads.
    guidance: whether it takes the guidance scale that it was distilled with.
    text_width: channels of the text states; 0 takes any.
    pooled_width: channels of the pooled text; 0 takes any.
    remat: recompute blocks in the backward pass instead of storing them.
    dtype: of the activations; statistics, softmax, rotation and time stay
      float32.
    attention: implementation of `attention.attend`.
  """

  width: int = 3072
  doubles: int = 19
  singles: int = 38
  heads: int = 24
  channels: int = 16
  axes: tuple[int, ...] = (16, 56, 56)
  guidance: bool = True
  text_width: int = 4096
  pooled_width: int = 768
  remat: bool = True
  dtype: str = "float32"
  attention: str = "xla"

  def __post_init__(self):
    object.__setattr__(self, "axes", tuple(self.axes))
    total, odd = sum(self.axes), any(n % 2 for n in self.axes)
    if len(self.axes) != 3 or odd or total * self.heads != self.width:
      raise ValueError(
          f"axes is {self.axes}; allowed are three even numbers that sum to"
          f" width / heads, here {self.width} / {self.heads}."
      )
    if min(self.doubles, self.singles) < 1:
      raise ValueError(
          f"doubles is {self.doubles} and singles {self.singles}; both must be"
          " at least 1."
      )
    layers.check_numerics(self)


class Flux(nn.Module):
  """Velocity prediction for latents under encoded text.

  Call with x f32[B, h, w, C], t f32[B] in [0, 1], text [B, L, D_text], pooled
  [B, P] and guidance f32[B], a scale (3.5 is usual), or None where the config
  has none; returns f32[B, h, w, C]. Attention sees all of the text, as in the
  published pipeline: mask bool[B, L] only tells word maps what is real. With
  words bool[B, L] and blocks, a tuple of indices that count double blocks
  first, it returns besides how much each latent position looks at those words,
  f32[B, h, w] of mean 1; see `attention.word_map`.

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
      mask=None,
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
    turns = rotary(rows, columns, c.axes)
    (image, text), seen = _stack(c, DoubleBlock, c.doubles, "double_blocks")(
        (image, text),
        (
            _modulations(c, vector, c.doubles, 6, "image_modulations"),
            _modulations(c, vector, c.doubles, 6, "text_modulations"),
        ),
        *layers.asked(words, chosen[: c.doubles]),
        turns,
        mask,
    )
    maps = [] if seen is None else [seen.sum(0)]
    both, seen = _stack(c, SingleBlock, c.singles, "single_blocks")(
        jnp.concatenate([image, text], axis=1),
        _modulations(c, vector, c.singles, 3, "modulations"),
        *layers.asked(words, chosen[c.doubles :]),
        _with_text(turns, text.shape[1]),
        mask,
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


class DoubleBlock(nn.Module):
  """Both streams with their own weights; attention over image and text.

  Call with the streams, their modulations [B, 6 D], words and wanted as in
  `layers.map_words`, the image's `rotary` tables and mask bool[B, L] or None.
  """

  config: FluxConfig

  @nn.compact
  def __call__(self, streams, modulations, words, wanted, turns, mask):
    c = self.config
    image, text = streams
    tokens = image.shape[1]
    of_image, of_text = (jnp.split(m[:, None], 6, -1) for m in modulations)
    q, k, v = (
        jnp.concatenate(pair, axis=1)
        for pair in zip(
            _heads(c, "image_", _modulated(image, *of_image[:2]), turns),
            _heads(c, "text_", _modulated(text, *of_text[:2]), None),
            strict=True,
        )
    )
    seen = layers.map_words(wanted, q[:, :tokens], k[:, tokens:], mask, words)
    attended = attend(q, k, v, implementation=c.attention)
    attended = attended.reshape(*q.shape[:2], c.width)
    image = self._update("image", image, of_image[2:], attended[:, :tokens])
    text = self._update("text", text, of_text[2:], attended[:, tokens:])
    return (image, text), seen

  def _update(self, name, x, parts, attended):
    """What a stream makes of its attention, and its feed-forward."""
    c = self.config
    gate, shift, scale, gate2 = parts
    out = nn.Dense(c.width, dtype=c.dtype, name=f"{name}_out")
    feed_forward = layers.FeedForward(c.width, c.dtype, name=f"{name}_ff")
    x = x + gate * out(attended)
    x = x + gate2 * feed_forward(_modulated(x, shift, scale))
    self.sow("intermediates", name, x)
    return x


class SingleBlock(nn.Module):
  """Attention and feed-forward side by side, over image and text at once.

  Called as `DoubleBlock`, with one stream [B, N + L, D], modulations [B, 3 D]
  and rotary tables of all of it.
  """

  config: FluxConfig

  @nn.compact
  def __call__(self, x, modulations, words, wanted, turns, mask):
    c = self.config
    dense = functools.partial(nn.Dense, dtype=c.dtype)
    shift, scale, gate = jnp.split(modulations[:, None], 3, -1)
    hidden = _modulated(x, shift, scale)
    q, k, v = _heads(c, "", hidden, turns)
    seen = None
    if words is not None:
      tokens = x.shape[1] - words.shape[1]
      seen = layers.map_words(wanted, q[:, :tokens], k[:, tokens:], mask, words)
    attended = attend(q, k, v, implementation=c.attention)
    hidden = nn.gelu(dense(4 * c.width, name="up")(hidden), approximate=True)
    # One matrix over both of them side by side would have to copy them there.
    out = dense(c.width, name="out")(attended.reshape(x.shape))
    out = out + dense(c.width, use_bias=False, name="down")(hidden)
    x = x + gate * out
    self.sow("intermediates", "both", x)
    return x, seen


class _TurnedNorm(nn.Module):
  """RMS norm of each head, turned by the place of its token.

  Call with x [B, N, H, d] and turns, (cos, sin) f32[N, d], or None to leave
  out the turn; with J the turn of each pair of channels by 90 degrees and s
  the scale, it returns (s x) cos + J (s x) sin over the root mean square of x.
  """

  @nn.compact
  def __call__(self, x, turns):
    width = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (width,))
    scale = scale.astype(jnp.float32)[None]
    y = x.astype(jnp.float32)
    size = jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6)
    if turns is None:
      return (y * size * scale[None, None]).astype(x.dtype)
    cos, sin = turns
    # A product with +-1 and 0 is exact in any dtype, and on a TPU it costs much
    # less than exchanging neighbours, which lie in the lanes of one register.
    quarter = np.zeros((width, width), np.float32)
    even = np.arange(0, width, 2)
    quarter[even + 1, even], quarter[even, even + 1] = -1, 1
    other = jnp.einsum(
        "bnhd,de->bnhe", x, quarter.astype(x.dtype), precision="highest"
    )
    swapped = scale.reshape(-1, 2)[:, ::-1].reshape(1, width)
    cos, sin = (cos * scale)[None, :, None], (sin * swapped)[None, :, None]
    return ((y * cos + other.astype(jnp.float32) * sin) * size).astype(x.dtype)


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
  axes = (0, nn.broadcast, 0, nn.broadcast, nn.broadcast)
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


def _modulated(x, shift, scale):
  return layers.normed(x) * (1 + scale) + shift


def _heads(config, prefix, x, turns):
  """Queries, keys and values, each [B, N, H, d], the first two turned."""
  shape = (*x.shape[:2], config.heads, config.width // config.heads)
  q, k, v = (
      nn.Dense(config.width, dtype=config.dtype, name=prefix + part)(x)
      for part in ("q", "k", "v")
  )
  q = _TurnedNorm(name=f"{prefix}q_norm")(q.reshape(shape), turns)
  k = _TurnedNorm(name=f"{prefix}k_norm")(k.reshape(shape), turns)
  return q, k, v.reshape(shape)
