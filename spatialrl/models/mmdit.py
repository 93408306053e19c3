"""The MMDiT of Stable Diffusion 3 and 3.5: two streams, joint attention.

Esser et al., arXiv:2403.03206, with the QK norm and the second, image-only
attention of SD3.5-Medium, as diffusers' `SD3Transformer2DModel` has them.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from spatialrl.models import layers
from spatialrl.models.attention import attend
from spatialrl.parallel.mesh import keep_rows

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
    text_width: channels of the text states; 0 takes any.
    pooled_width: channels of the pooled text; 0 takes any.
    dtype: of the activations; statistics, softmax and time stay float32.
    attention: implementation of `attention.attend`.
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
  text_width: int = 0
  pooled_width: int = 0
  dtype: str = "float32"
  attention: str = "xla"

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
    layers.check_numerics(self)


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
    dense = functools.partial(nn.Dense, dtype=c.dtype)
    mlp = functools.partial(layers.MLP, c.width, c.dtype)
    layers.check_text(c, text, pooled)
    batch, height, width, channels = x.shape
    p = c.patch
    rows, columns = height // p, width // p
    tokens = x.reshape(batch, rows, p, columns, p, channels)
    tokens = tokens.transpose(0, 1, 3, 2, 4, 5)
    tokens = tokens.reshape(batch, rows * columns, p * p * channels)
    image = dense(c.width, name="patch_embed")(tokens)
    image = image + self._places(rows, columns)[None].astype(c.dtype)
    text = dense(c.width, name="context_embed")(text)
    vector = mlp(name="time_embed")(layers.time_features(t))
    vector = vector + mlp(name="pooled_embed")(pooled)
    for name, value in (("image", image), ("text", text), ("vector", vector)):
      self.sow("intermediates", name, value)
    vector = nn.silu(vector)
    keys = None
    if mask is not None:
      seen = jnp.ones((batch, rows * columns), bool)
      keys = jnp.concatenate([seen, mask], axis=1)

    chosen = layers.chosen_blocks(words, blocks, c.depth)
    first, maps = 0, []
    for name, length, dual in (
        ("dual_blocks", c.dual_layers, True),
        ("blocks", c.depth - 1 - c.dual_layers, False),
    ):
      if length:
        stack = layers.scanned(
            JointBlock, length, c.remat, (nn.broadcast,) * 3 + (0,)
        )(c, dual=dual, name=name)
        asked = layers.asked(words, chosen[first : first + length])
        (image, text), seen = stack((image, text), vector, keys, *asked)
        if seen is not None:
          maps.append(seen.sum(0))
        first += length
    last = layers.recomputed(JointBlock, c.remat)(
        c, text_ends=True, name="last_block"
    )
    asked = layers.asked(words, chosen[-1])
    (image, _), seen = last((image, text), vector, keys, *asked)
    if seen is not None:
      maps.append(seen)

    shift_scale = dense(2 * c.width, kernel_init=_zeros, name="norm_out")
    scale, shift = jnp.split(shift_scale(vector)[:, None], 2, axis=-1)
    image = layers.normed(image) * (1 + scale) + shift
    out = dense(p * p * channels, kernel_init=_zeros, name="proj_out")(image)
    out = out.reshape(batch, rows, columns, p, p, channels)
    out = out.transpose(0, 1, 3, 2, 4, 5).astype(jnp.float32)
    out = out.reshape(batch, height, width, channels)
    if words is None:
      return out
    return out, layers.spread(sum(maps) / len(blocks), rows, columns, p)

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
    c = self.config
    width = c.width
    dense = functools.partial(nn.Dense, width, dtype=c.dtype)
    feed_forward = functools.partial(layers.FeedForward, width, c.dtype)
    attention = functools.partial(attend, implementation=c.attention)
    image, text = streams
    tokens = image.shape[1]

    parts = 9 if self.dual else 6
    i_shift, i_scale, i_gate, i_shift2, i_scale2, i_gate2, *second = (
        _modulation(self, "image_modulation", vector, parts)
    )
    normed = layers.normed(image)
    image_in = normed * (1 + i_scale) + i_shift
    if self.text_ends:
      t_scale, t_shift = _modulation(self, "text_modulation", vector, 2)
    else:
      t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2 = _modulation(
          self, "text_modulation", vector, 6
      )
    text_in = layers.normed(text) * (1 + t_scale) + t_shift

    q, k, v = (
        jnp.concatenate(pair, axis=1)
        for pair in zip(
            self._heads("image", image_in),
            self._heads("text", text_in),
            strict=True,
        )
    )
    seen = layers.map_words(wanted, q[:, :tokens], k[:, tokens:], words)
    if self.text_ends:
      q = q[:, :tokens]
    attended = attention(q, k, v, keys).reshape(*q.shape[:2], width)
    image = image + i_gate * dense(name="image_out")(attended[:, :tokens])
    image = keep_rows(image)
    if second:
      shift, scale, gate = second
      q, k, v = self._heads("image2", normed * (1 + scale) + shift)
      alone = attention(q, k, v).reshape(image.shape)
      image = keep_rows(image + gate * dense(name="image2_out")(alone))
    hidden = layers.normed(image) * (1 + i_scale2) + i_shift2
    image = keep_rows(image + i_gate2 * feed_forward(name="image_ff")(hidden))
    self.sow("intermediates", "image", image)
    if self.text_ends:
      return (image, text), seen

    text = text + t_gate * dense(name="text_out")(attended[:, tokens:])
    text = keep_rows(text)
    hidden = layers.normed(text) * (1 + t_scale2) + t_shift2
    text = keep_rows(text + t_gate2 * feed_forward(name="text_ff")(hidden))
    self.sow("intermediates", "text", text)
    return (image, text), seen

  def _heads(self, stream, x):
    """Queries, keys and values of one stream, each [B, N, H, d]."""
    c = self.config
    shape = (*x.shape[:2], c.heads, c.width // c.heads)
    q, k, v = (
        keep_rows(nn.Dense(c.width, dtype=c.dtype, name=f"{stream}_{part}")(x))
        for part in ("q", "k", "v")
    )
    q, k, v = (part.reshape(shape) for part in (q, k, v))
    if c.qk_norm:
      norm = functools.partial(nn.RMSNorm, epsilon=1e-6, dtype=c.dtype)
      q = norm(name=f"{stream}_q_norm")(q)
      k = norm(name=f"{stream}_k_norm")(k)
    return q, k, v


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


def _modulation(module, name, vector, parts):
  c = module.config
  dense = nn.Dense(
      parts * c.width, kernel_init=_zeros, dtype=c.dtype, name=name
  )
  return jnp.split(dense(vector)[:, None], parts, axis=-1)
