"""The sizes of FLUX.1 and its two kinds of blocks; flux.py stacks them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.models import layers
from spatialrl.models.attention import attend
from spatialrl.parallel.mesh import keep_rows


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
    x = keep_rows(x + gate * out(attended))
    x = keep_rows(x + gate2 * feed_forward(_modulated(x, shift, scale)))
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
    hidden = keep_rows(dense(4 * c.width, name="up")(hidden))
    hidden = nn.gelu(hidden, approximate=True)
    # One matrix over both of them side by side would have to copy them there.
    out = dense(c.width, name="out")(attended.reshape(x.shape))
    out = out + dense(c.width, use_bias=False, name="down")(hidden)
    x = keep_rows(x + gate * out)
    self.sow("intermediates", "both", x)
    return x, seen


class _TurnedNorm(nn.Module):
  """RMS norm of each head, turned by the place of its token.

  Call with x [B, H, N, d] and turns, (cos, sin) f32[N, d], or None to leave
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
        "bhnd,de->bhne", x, quarter.astype(x.dtype), precision="highest"
    )
    swapped = scale.reshape(-1, 2)[:, ::-1].reshape(1, width)
    cos, sin = (cos * scale)[None, None], (sin * swapped)[None, None]
    return ((y * cos + other.astype(jnp.float32) * sin) * size).astype(x.dtype)


def _modulated(x, shift, scale):
  return layers.normed(x) * (1 + scale) + shift


def _heads(config, prefix, x, turns):
  """Queries, keys and values, each [B, N, H, d], the first two turned."""
  shape = (*x.shape[:2], config.heads, config.width // config.heads)
  dense = functools.partial(nn.Dense, config.width, dtype=config.dtype)
  q, k, v = (
      # Heads first, as kernels of attention want them: whole tiles of a TPU's
      # registers move, and norm and turn need no other order.
      keep_rows(dense(name=prefix + part)(x)).reshape(shape).swapaxes(1, 2)
      for part in ("q", "k", "v")
  )
  q = _TurnedNorm(name=f"{prefix}q_norm")(q, turns)
  k = _TurnedNorm(name=f"{prefix}k_norm")(k, turns)
  return tuple(part.swapaxes(1, 2) for part in (q, k, v))
