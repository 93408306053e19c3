"""What the SD3 and the FLUX transformer have in common."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.models.attention import check_implementation, word_map
from spatialrl.parallel.mesh import keep_rows

_TIME_FEATURES = 256
_DTYPES = ("float32", "bfloat16", "float16")


class MLP(nn.Module):
  """Embeds a vector: [B, P] -> [B, D] in `dtype`."""

  width: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.width, dtype=self.dtype, name="up")(x)
    return nn.Dense(self.width, dtype=self.dtype, name="down")(nn.silu(x))


class FeedForward(nn.Module):
  """[B, N, D] -> [B, N, D] over 4 D hidden channels."""

  width: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    x = keep_rows(nn.Dense(4 * self.width, dtype=self.dtype, name="up")(x))
    x = nn.gelu(x, approximate=True)
    return nn.Dense(self.width, dtype=self.dtype, name="down")(x)


def normed(x):
  """Layer norm without parameters, statistics in float32."""
  y = x.astype(jnp.float32)
  mean = y.mean(-1, keepdims=True)
  # Both means in one reading of x, as in flax's own; a stream's mean is small.
  variance = jnp.maximum((y * y).mean(-1, keepdims=True) - mean * mean, 0.0)
  return ((y - mean) * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)


def time_features(t):
  """Sinusoids of 1000 t, cosines first: f32[B] -> f32[B, 256]."""
  half = _TIME_FEATURES // 2
  frequency = np.exp(-np.log(10000.0) * np.arange(half) / half)
  angle = 1000.0 * t[:, None] * frequency.astype(np.float32)[None]
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def scanned(block, length, remat, in_axes):
  """A stack of equal blocks, parameters stacked along their first axis.

  Args:
    block: module class whose call takes (carry, *args) and returns
      (carry, output).
    length: blocks of the stack.
    remat: recompute the blocks in the backward pass.
    in_axes: of the args, 0 for one value a block or `nn.broadcast`.
  """
  return nn.scan(
      recomputed(block, remat),
      variable_axes={"params": 0, "lora": 0, "intermediates": 0},
      split_rngs={"params": True},
      in_axes=in_axes,
      length=length,
  )


def recomputed(block, remat):
  """The block, rematerialised if asked for."""
  return nn.remat(block, prevent_cse=False) if remat else block


def check_numerics(config):
  """Raises ValueError unless dtype and attention of a config exist."""
  check_implementation(config.attention)
  if config.dtype not in _DTYPES:
    raise ValueError(
        f"dtype is {config.dtype!r}; allowed are {', '.join(_DTYPES)}."
    )


def check_text(config, text, pooled):
  """Raises ValueError unless the text states have the config's channels."""
  for field, states in (("text_width", text), ("pooled_width", pooled)):
    width = getattr(config, field)
    if width not in (0, states.shape[-1]):
      raise ValueError(
          f"{field} is {width}; the states given have {states.shape[-1]}"
          " channels."
      )


def chosen_blocks(words, blocks, depth):
  """Which blocks give a map: bool[depth], none where no words are given.

  Raises:
    ValueError: for an index of no block, or for none at all.
  """
  if words is None:
    return np.zeros(depth, bool)
  if not blocks or not set(blocks) <= set(range(depth)):
    raise ValueError(
        f"blocks is {blocks}; allowed are indices from 0 to {depth - 1}."
    )
  return np.isin(np.arange(depth), blocks)


def asked(words, chosen):
  """(words, chosen) for the blocks of a stack; Nones if none is chosen."""
  return (words, chosen) if chosen.any() else (None, None)


def map_words(wanted, query, key, words):
  """`attention.word_map` in a scanned block.

  Args:
    wanted: bool[], whether this block gives a map; None if no block of the
      stack does.
    query: [B, N, H, d] of the image positions.
    key: [B, L, H, d] of the text tokens.
    words: bool[B, L], the words to look for.

  Returns:
    f32[B, N], zeros where it is not wanted; None for None.
  """
  if wanted is None:
    return None
  return jax.lax.cond(
      wanted,
      lambda: word_map(query, key, words),
      lambda: jnp.zeros(query.shape[:2], jnp.float32),
  )


def spread(seen, rows, columns, patch):
  """A map of tokens on their latent positions: [B, N] -> [B, h, w]."""
  seen = seen.reshape(-1, rows, columns)
  return jnp.repeat(jnp.repeat(seen, patch, axis=1), patch, axis=2)
