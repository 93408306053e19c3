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
  `layers.map_words`, and rotary tables of all tokens.
  """

  config: FluxConfig

  @nn.compact
  def __call__(self, streams, modulations, words, wanted, turns):
    c = self.config
    image, text = streams
    tokens = image.shape[1]
    of_image, of_text = (jnp.split(m[:, None], 6, -1) for m in modulations)
    parts = (
        _projected(c, "image_", _modulated(image, *of_image[:2])),
        _projected(c, "text_", _modulated(text, *of_text[:2])),
    )
    # Joined first, so that both are normed and brought in order at once.
    q, k, v = _heads(
        c,
        [jnp.concatenate(pair, axis=1) for pair in zip(*parts, strict=True)],
        [
            _scales(c, ("image_", tokens), ("text_", text.shape[1]), of=part)
            for part in "qk"
        ],
        turns,
    )
    seen = layers.map_words(wanted, q[:, :tokens], k[:, tokens:], words)
    attended = attend(q, k, v, implementation=c.attention)
    image = self._update("image", image, of_image[2:], attended[:, :tokens])
    text = self._update("text", text, of_text[2:], attended[:, tokens:])
    return (image, text), seen

  def _update(self, name, x, parts, attended):
    """What a stream makes of its attention, and its feed-forward."""
    c = self.config
    gate, shift, scale, gate2 = parts
    out = nn.Dense(c.width, dtype=c.dtype, name=f"{name}_out")
    feed_forward = layers.FeedForward(c.width, c.dtype, name=f"{name}_ff")
    x = keep_rows(x + gate * out(attended.reshape(x.shape)))
    x = keep_rows(x + gate2 * feed_forward(_modulated(x, shift, scale)))
    self.sow("intermediates", name, x)
    return x


class SingleBlock(nn.Module):
  """Attention and feed-forward side by side, over image and text at once.

  Called as `DoubleBlock`, with one stream [B, N + L, D] and its modulations
  [B, 3 D].
  """

  config: FluxConfig

  @nn.compact
  def __call__(self, x, modulations, words, wanted, turns):
    c = self.config
    dense = functools.partial(nn.Dense, dtype=c.dtype)
    shift, scale, gate = jnp.split(modulations[:, None], 3, -1)
    hidden = _modulated(x, shift, scale)
    scales = [_scales(c, ("", x.shape[1]), of=part) for part in "qk"]
    q, k, v = _heads(c, _projected(c, "", hidden), scales, turns)
    seen = None
    if words is not None:
      tokens = x.shape[1] - words.shape[1]
      seen = layers.map_words(wanted, q[:, :tokens], k[:, tokens:], words)
    attended = attend(q, k, v, implementation=c.attention)
    hidden = keep_rows(dense(4 * c.width, name="up")(hidden))
    hidden = nn.gelu(hidden, approximate=True)
    # One matrix over both of them side by side would have to copy them there.
    out = dense(c.width, name="out")(attended.reshape(x.shape))
    out = out + dense(c.width, use_bias=False, name="down")(hidden)
    x = keep_rows(x + gate * out)
    self.sow("intermediates", "both", x)
    return x, seen


class _Scale(nn.Module):
  """The scale of a norm over the channels of a head: f32[d]."""

  width: int

  @nn.compact
  def __call__(self):
    scale = self.param("scale", nn.initializers.ones, (self.width,))
    return scale.astype(jnp.float32)


def _scales(config, *streams, of):
  """Norm scales of joined tokens, f32[N, d]; streams are (prefix, tokens)."""
  width = config.width // config.heads
  return jnp.concatenate([
      jnp.broadcast_to(_Scale(width, name=f"{prefix}{of}_norm")(), (n, width))
      for prefix, n in streams
  ])


def _turned(x, scale, turns):
  """RMS norm of each head, turned by the place of its token.

  With J the turn of each pair of channels by 90 degrees and s the scale, it is
  (s x) cos + J (s x) sin over the root mean square of x.

  Args:
    x: [B, H, N, d].
    scale: f32[N, d].
    turns: (cos, sin), each f32[N, d].
  """
  width, (cos, sin) = x.shape[-1], turns
  y = x.astype(jnp.float32)
  size = jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6)
  # A product with +-1 and 0 is exact in any dtype, and on a TPU it costs much
  # less than exchanging neighbours, which lie in the lanes of one register.
  quarter = np.zeros((width, width), np.float32)
  even = np.arange(0, width, 2)
  quarter[even + 1, even], quarter[even, even + 1] = -1, 1
  other = jnp.einsum(
      "bhnd,de->bhne", x, quarter.astype(x.dtype), precision="highest"
  )
  swapped = scale.reshape(-1, width // 2, 2)[..., ::-1].reshape(scale.shape)
  cos, sin = (cos * scale)[None, None], (sin * swapped)[None, None]
  return ((y * cos + other.astype(jnp.float32) * sin) * size).astype(x.dtype)


def _modulated(x, shift, scale):
  return layers.normed(x) * (1 + scale) + shift


def _projected(config, prefix, x):
  """Queries, keys and values of one stream, each [B, N, D]."""
  dense = functools.partial(nn.Dense, config.width, dtype=config.dtype)
  return [keep_rows(dense(name=prefix + part)(x)) for part in "qkv"]


def _heads(config, parts, scales, turns):
  """Queries, keys and values as [B, N, H, d], the first two turned.

  Args:
    config: FluxConfig.
    parts: the three, each [B, N, D].
    scales: of the first two, each f32[N, d].
    turns: (cos, sin), each f32[N, d].
  """
  shape = (*parts[0].shape[:2], config.heads, config.width // config.heads)
  # Heads first, as kernels of attention want them: whole tiles of a TPU's
  # registers move, and norm and turn need no other order.
  q, k, v = (part.reshape(shape).swapaxes(1, 2) for part in parts)
  q, k = (
      _turned(part, scale, turns)
      for part, scale in zip((q, k), scales, strict=True)
  )
  return tuple(part.swapaxes(1, 2) for part in (q, k, v))
