"""The T5 encoder, whose token states SD3 and FLUX read.

Raffel et al., arXiv:1910.10683, and its version 1.1 with a gated feed-forward
(Shazeer, arXiv:2002.05202), as `T5EncoderModel` of transformers has them.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.models.attention import attend

_ACTIVATIONS = {
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}
_normal = nn.initializers.normal


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Sizes of a T5 encoder, by default those of the first T5-Small.

  Attributes:
    vocabulary: rows of the embedding table.
    width: D, channels of the tokens.
    head_width: channels of one attention head; heads need not fill `width`.
    heads: attention heads.
    hidden: channels inside the feed-forward.
    depth: number of blocks.
    buckets: of relative distances, half of them for each direction.
    max_distance: tokens; all distances beyond it share a bucket.
    activation: "relu" or "gelu_new", the GELU by tanh.
    gated: multiply the activated half of the feed-forward by a linear one.
    epsilon: of the RMS norms.
    dtype: of the activations.
  """

  vocabulary: int = 32128
  width: int = 512
  head_width: int = 64
  heads: int = 8
  hidden: int = 2048
  depth: int = 6
  buckets: int = 32
  max_distance: int = 128
  activation: str = "relu"
  gated: bool = False
  epsilon: float = 1e-6
  dtype: str = "float32"

  def __post_init__(self):
    if self.activation not in _ACTIVATIONS:
      raise ValueError(
          f"activation is {self.activation!r}; allowed are"
          f" {sorted(_ACTIVATIONS)}."
      )


class T5States(NamedTuple):
  """What the encoder gives.

  Attributes:
    hidden: f32[depth + 1, B, L, D], the embedded tokens, then the output of
      every block, none of them normed.
    last: f32[B, L, D], the normed output of the last block.
  """

  hidden: jax.Array
  last: jax.Array


class T5Encoder(nn.Module):
  """Transformer over tokens that knows places by their distance alone.

  Call with ids i32[B, L] and mask bool[B, L], True at real tokens, or None for
  no mask, as SD3 and FLUX do, which changes the states of all tokens; returns
  T5States.
  """

  config: T5Config

  @nn.compact
  def __call__(self, ids, mask=None):
    c = self.config
    words = self.param("words", _normal(1.0), (c.vocabulary, c.width))
    near = self.param("position_bias", _normal(0.02), (c.buckets, c.heads))
    buckets = relative_buckets(
        ids.shape[1], buckets=c.buckets, max_distance=c.max_distance
    )
    bias = jnp.asarray(near, jnp.float32)[buckets].transpose(2, 0, 1)
    x = jnp.take(words, ids, axis=0).astype(c.dtype)
    scanned = nn.scan(
        nn.remat(T5Block, prevent_cse=False),
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=c.depth,
    )
    out, states = scanned(c, name="blocks")(x, bias, mask)
    last = _norm(c, "norm")(out)
    hidden = jnp.concatenate([x[None], states])
    return T5States(hidden.astype(jnp.float32), last.astype(jnp.float32))


class T5Block(nn.Module):
  """One pre-norm block; `nn.scan` runs it over stacked parameters.

  Returns its output twice: as what the next block reads and as what is kept.
  """

  config: T5Config

  @nn.compact
  def __call__(self, x, bias, mask):
    c = self.config
    normed = _norm(c, "norm1")(x)
    inner = c.heads * c.head_width
    q, k, v = (
        _dense(c, inner, part)(normed).reshape(
            *x.shape[:2], c.heads, c.head_width
        )
        for part in ("q", "k", "v")
    )
    # The logits have no factor: it was folded into the weights' first values.
    attended = attend(q, k, v, mask, bias=bias, scale=1.0)
    x = x + _dense(c, c.width, "out")(attended.reshape(*x.shape[:2], inner))
    normed = _norm(c, "norm2")(x)
    activate = _ACTIVATIONS[c.activation]
    if c.gated:
      hidden = activate(_dense(c, c.hidden, "gate")(normed))
      hidden = hidden * _dense(c, c.hidden, "up")(normed)
    else:
      hidden = activate(_dense(c, c.hidden, "up")(normed))
    x = x + _dense(c, c.width, "down")(hidden)
    return x, x


def relative_buckets(length, *, buckets, max_distance):
  """Bucket of the distance from every token to every other.

  Half of the buckets are for tokens that come later. Of each half, the first
  half holds one distance a bucket, the rest widen as the logarithm up to
  `max_distance` (arXiv:1910.10683, section 2.1).

  Args:
    length: L, tokens.
    buckets: number of buckets, a multiple of 4.
    max_distance: tokens.

  Returns:
    np.i32[L, L], rows are queries.
  """
  places = np.arange(length)
  offset = places[None] - places[:, None]
  distance = np.abs(offset)
  half = buckets // 2
  exact = half // 2
  ratio = np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact)
  wide = np.minimum(exact + (ratio * (half - exact)).astype(int), half - 1)
  bucket = np.where(distance < exact, distance, wide)
  return (bucket + half * (offset > 0)).astype(np.int32)


def conditioning(sizes, params, ids):
  """What SD3 and FLUX take of T5: no mask, padding included.

  Args:
    sizes: T5Config.
    params: parameters of T5Encoder.
    ids: i32[B, L].

  Returns:
    (f32[B, L, D] states, None: T5 has no pooled vector).
  """
  return T5Encoder(sizes).apply({"params": params}, ids).last, None


def _dense(config, features, name):
  return nn.Dense(features, use_bias=False, dtype=config.dtype, name=name)


def _norm(config, name):
  return nn.RMSNorm(epsilon=config.epsilon, dtype=config.dtype, name=name)
