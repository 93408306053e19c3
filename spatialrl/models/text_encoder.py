"""A small text encoder, trained together with the embedded policy."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from spatialrl.models.attention import attend


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
  """Sizes of the text encoder.

  Attributes:
    vocabulary: number of token ids.
    max_tokens: longest prompt.
    width: channels of the token states and of the pooled vector.
    depth: transformer blocks.
    heads: attention heads; must divide `width`.
  """

  vocabulary: int
  max_tokens: int = 24
  width: int = 128
  depth: int = 2
  heads: int = 4


class TextEncoder(nn.Module):
  """Token states and one vector in which word order survives.

  Call with ids i32[B, L] and mask bool[B, L], L <= max_tokens; returns text
  f32[B, L, D] and pooled f32[B, D]. Padding never changes either, so a shorter
  L gives the same numbers.
  """

  config: TextEncoderConfig

  @nn.compact
  def __call__(self, ids, mask):
    c = self.config
    length = ids.shape[1]
    unit = nn.initializers.normal(1.0)
    words = self.param("words", unit, (c.vocabulary, c.width))
    places = self.param("places", unit, (c.max_tokens, c.width))
    x = words[ids] + places[None, :length]
    for i in range(c.depth):
      x = TransformerBlock(c.width, c.heads, name=f"block_{i}")(x, mask)
    x = nn.LayerNorm(epsilon=1e-6, name="norm")(x) * mask[..., None]
    # A mean would forget who stands left of whom, so each place has its own
    # projection.
    pool = self.param(
        "pool",
        nn.initializers.variance_scaling(1.0, "fan_in", "normal", (0, 1), 2),
        (c.max_tokens, c.width, c.width),
    )
    pooled = jnp.einsum("bld,lde->be", x, pool[:length])
    return x, pooled


class TransformerBlock(nn.Module):
  """Pre-norm self-attention and feed-forward: [B, N, D] -> [B, N, D]."""

  width: int
  heads: int

  @nn.compact
  def __call__(self, x, mask=None):
    normed = nn.LayerNorm(epsilon=1e-6, name="norm1")(x)
    shape = (*x.shape[:2], self.heads, self.width // self.heads)
    q, k, v = (
        nn.Dense(self.width, name=part)(normed).reshape(shape)
        for part in ("q", "k", "v")
    )
    attended = attend(q, k, v, mask).reshape(x.shape)
    x = x + nn.Dense(self.width, name="out")(attended)
    hidden = nn.LayerNorm(epsilon=1e-6, name="norm2")(x)
    hidden = nn.gelu(nn.Dense(4 * self.width, name="up")(hidden))
    return x + nn.Dense(self.width, name="down")(hidden)
