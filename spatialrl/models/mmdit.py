"""The MMDiT of Stable Diffusion 3 and 3.5: two streams, joint attention.

Esser et al., arXiv:2403.03206, with the QK norm and the second, image-only
attention of SD3.5-Medium, as diffusers' `SD3Transformer2DModel` has them.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.models.attention import attend, word_map

_TIME_FEATURES = 256
_zeros = nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
  """Sizes of an MMDiT.

  Attributes:
    width: D, channels of both streams.
    depth: number of joint blocks; the last one drops its text output.
    heads: attention heads; must divide `width`.
    channels: C of the latents.
    patch: side of the square of latent positions that make one token.
    dual_layers: the first so many blocks attend a second time, image only.
    qk_norm: RMS-normalise queries and keys per head.
    remat: recompute blocks in the backward pass instead of storing them.
    position_table: side, in tokens, of the table whose centre is the image
      (`pos_embed_max_size` of diffusers); 0 counts tokens from the corner.
    position_base: the table spans this many units a side (`sample_size` /
      `patch_size` of diffusers); read with a table only.
    learned_positions: tokens a side of a learned table of unit scale, used
      instead of the sinusoids; 0 for none. On a grid of few tokens most
      sinusoids hardly change, so places are hard to tell apart.
  """

  width: int = 128
  depth: int = 6
  heads: int = 4
  channels: int = 48
  patch: int = 1
  dual_layers: int = 0
  qk_norm: bool = True
  remat: bool = True
  position_table: int = 0
  position_base: int = 0
  learned_positions: int = 0

  def __post_init__(self):
    if self.width % self.heads:
      raise ValueError(
          f"heads is {self.heads}; it must divide width {self.width}."
      )
    if not 0 <= self.dual_layers < self.depth:
      raise ValueError(
          f"dual_layers is {self.dual_layers}; allowed are 0 to"
          f" {self.depth - 1}."
      )
    table, base = self.position_table, self.position_base
    if min(table, base) < 0 or bool(table) != bool(base):
      raise ValueError(
          f"position_table is {table} and position_base {base}; allowed are"
          " two positive numbers, or 0 and 0."
      )


class MMDiT(nn.Module):
  """Velocity (or data) prediction for latents under encoded text.

  Call with x f32[B, h, w, C], t f32[B] in [0, 1], text [B, L, D_text], pooled
  [B, P] and mask bool[B, L] or None; returns f32[B, h, w, C]. With words
  bool[B, L] and blocks, a tuple of block indices, it returns besides how much
  each latent position looks at those words, f32[B, h, w] of mean 1, averaged
  over heads and the chosen blocks; see `attention.word_map`.
  """

  config: MMDiTConfig

  @nn.compact
  def __call__(self, x, t, text, pooled, mask=None, words=None, blocks=()):
    c = self.config
    batch, height, width, channels = x.shape
    p = c.patch
    rows, columns = height // p, width // p
    tokens = x.reshape(batch, rows, p, columns, p, channels)
    tokens = tokens.transpose(0, 1, 3, 2, 4, 5)
    tokens = tokens.reshape(batch, rows * columns, p * p * channels)
    image = nn.Dense(c.width, name="patch_embed")(tokens)
    image = image + self._places(rows, columns)[None]
    text = nn.Dense(c.width, name="context_embed")(text)
    vector = _MLP(c.width, name="time_embed")(time_features(t))
    vector = vector + _MLP(c.width, name="pooled_embed")(pooled)
    vector = nn.silu(vector)
    keys = None
    if mask is not None:
      seen = jnp.ones((batch, rows * columns), bool)
      keys = jnp.concatenate([seen, mask], axis=1)

    if words is not None and not set(blocks) <= set(range(c.depth)):
      raise ValueError(
          f"blocks is {blocks}; allowed are indices from 0 to {c.depth - 1}."
      )
    chosen = np.isin(np.arange(c.depth), blocks) if words is not None else None
    first, maps = 0, []
    for name, length, dual in (
        ("dual_blocks", c.dual_layers, True),
        ("blocks", c.depth - 1 - c.dual_layers, False),
    ):
      if length:
        wanted = None if chosen is None else chosen[first : first + length]
        if wanted is not None and not wanted.any():
          wanted = None
        stack = _scan(c, length)(c, dual=dual, name=name)
        (image, text), seen = stack(
            (image, text), vector, keys, None if wanted is None else words,
            wanted,
        )
        if seen is not None:
          maps.append(seen.sum(0))
        first += length
    last = _remat(c)(c, text_ends=True, name="last_block")
    wanted = None if chosen is None or not chosen[-1] else np.asarray(True)
    (image, _), seen = last(
        (image, text), vector, keys, None if wanted is None else words, wanted
    )
    if seen is not None:
      maps.append(seen)

    shift_scale = nn.Dense(2 * c.width, kernel_init=_zeros, name="norm_out")
    scale, shift = jnp.split(shift_scale(vector)[:, None], 2, axis=-1)
    image = _normed(image) * (1 + scale) + shift
    out = nn.Dense(p * p * channels, kernel_init=_zeros, name="proj_out")(image)
    out = out.reshape(batch, rows, columns, p, p, channels)
    out = out.transpose(0, 1, 3, 2, 4, 5)
    out = out.reshape(batch, height, width, channels)
    if words is None:
      return out
    seen = sum(maps) / len(blocks)
    seen = jnp.repeat(seen.reshape(batch, rows, 1, columns), p, axis=2)
    seen = jnp.repeat(seen.reshape(batch, height, columns), p, axis=2)
    return out, seen

  def _places(self, rows, columns):
    c = self.config
    if not c.learned_positions:
      return position_features(
          rows, columns, c.width, table=c.position_table, base=c.position_base
      )
    side = c.learned_positions
    if rows > side or columns > side:
      raise ValueError(
          f"learned_positions is {side}; an image of {rows} x {columns} tokens"
          f" needs at least {max(rows, columns)}."
      )
    table = self.param(
        "places", nn.initializers.normal(1.0), (side, side, c.width)
    )
    return table[:rows, :columns].reshape(rows * columns, c.width)


class JointBlock(nn.Module):
  """One MMDiT block; `nn.scan` runs it over stacked parameters.

  Returns the two streams and, where `wanted` bool[] is given, the word map
  f32[B, N] of `attention.word_map`, zeros if `wanted` is False.
  """

  config: MMDiTConfig
  dual: bool = False
  text_ends: bool = False

  @nn.compact
  def __call__(self, streams, vector, keys, words=None, wanted=None):
    image, text = streams
    tokens = image.shape[1]
    width = self.config.width

    parts = 9 if self.dual else 6
    i_shift, i_scale, i_gate, i_shift2, i_scale2, i_gate2, *second = (
        _modulation(self, "image_modulation", vector, parts)
    )
    normed = _normed(image)
    image_in = normed * (1 + i_scale) + i_shift
    if self.text_ends:
      t_scale, t_shift = _modulation(self, "text_modulation", vector, 2)
    else:
      t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2 = _modulation(
          self, "text_modulation", vector, 6
      )
    text_in = _normed(text) * (1 + t_scale) + t_shift

    q, k, v = (
        jnp.concatenate(pair, axis=1)
        for pair in zip(
            self._heads("image", image_in),
            self._heads("text", text_in),
            strict=True,
        )
    )
    seen = None
    if wanted is not None:
      real = None if keys is None else keys[:, tokens:]
      seen = jax.lax.cond(
          wanted,
          lambda: word_map(q[:, :tokens], k[:, tokens:], real, words),
          lambda: jnp.zeros(image.shape[:2], jnp.float32),
      )
    if self.text_ends:
      q = q[:, :tokens]
    attended = attend(q, k, v, keys).reshape(*q.shape[:2], width)
    image = image + i_gate * nn.Dense(width, name="image_out")(
        attended[:, :tokens]
    )
    if second:
      shift, scale, gate = second
      q, k, v = self._heads("image2", normed * (1 + scale) + shift)
      alone = attend(q, k, v).reshape(image.shape)
      image = image + gate * nn.Dense(width, name="image2_out")(alone)
    hidden = _normed(image) * (1 + i_scale2) + i_shift2
    image = image + i_gate2 * _FeedForward(width, name="image_ff")(hidden)
    if self.text_ends:
      return (image, text), seen

    text = text + t_gate * nn.Dense(width, name="text_out")(
        attended[:, tokens:]
    )
    hidden = _normed(text) * (1 + t_scale2) + t_shift2
    text = text + t_gate2 * _FeedForward(width, name="text_ff")(hidden)
    return (image, text), seen

  def _heads(self, stream, x):
    """Queries, keys and values of one stream, each [B, N, H, d]."""
    c = self.config
    shape = (*x.shape[:2], c.heads, c.width // c.heads)
    q, k, v = (
        nn.Dense(c.width, name=f"{stream}_{part}")(x).reshape(shape)
        for part in ("q", "k", "v")
    )
    if c.qk_norm:
      q = nn.RMSNorm(epsilon=1e-6, name=f"{stream}_q_norm")(q)
      k = nn.RMSNorm(epsilon=1e-6, name=f"{stream}_k_norm")(k)
    return q, k, v


def time_features(t):
  """Sinusoids of 1000 t, cosines first: f32[B] -> f32[B, 256]."""
  half = _TIME_FEATURES // 2
  frequency = np.exp(-np.log(10000.0) * np.arange(half) / half)
  angle = 1000.0 * t[:, None] * frequency.astype(np.float32)[None]
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def position_features(rows, columns, width, *, table=0, base=0):
  """Fixed 2-D sinusoids of unit scale: f32[rows * columns, width].

  Half of the channels encode the column, half the row.

  Args:
    rows: tokens from top to bottom.
    columns: tokens from left to right.
    width: D, a multiple of 4.
    table: token i of n sits at (i + (table - n) // 2) base / table; 0: at i.
    base: see `table`.

  Raises:
    ValueError: if the image is larger than the table.
  """
  quarter = width // 4
  frequency = 1.0 / 10000 ** (np.arange(quarter) / quarter)
  y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1)
  if table:
    if max(rows, columns) > table:
      raise ValueError(
          f"position_table is {table}; an image of {rows} x {columns} tokens"
          f" needs at least {max(rows, columns)}."
      )
    y = (y + (table - rows) // 2) * (base / table)
    x = (x + (table - columns) // 2) * (base / table)
  parts = [f(axis * frequency) for axis in (x, y) for f in (np.sin, np.cos)]
  return np.concatenate(parts, axis=-1).astype(np.float32)


class _MLP(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.silu(nn.Dense(self.width, name="up")(x))
    return nn.Dense(self.width, name="down")(x)


class _FeedForward(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.gelu(nn.Dense(4 * self.width, name="up")(x), approximate=True)
    return nn.Dense(self.width, name="down")(x)


def _modulation(module, name, vector, parts):
  width = module.config.width
  dense = nn.Dense(parts * width, kernel_init=_zeros, name=name)
  return jnp.split(dense(vector)[:, None], parts, axis=-1)


def _normed(x):
  """Layer norm without parameters, statistics in float32."""
  y = x.astype(jnp.float32)
  y = y - y.mean(-1, keepdims=True)
  y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6)
  return y.astype(x.dtype)


def _remat(config):
  return nn.remat(JointBlock, prevent_cse=False) if config.remat else JointBlock


def _scan(config, length):
  return nn.scan(
      _remat(config),
      variable_axes={"params": 0, "lora": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
      length=length,
  )
