"""CLIP's two towers, text and images, and both in one space of vectors.

Radford et al., arXiv:2103.00020, as `CLIPTextModel`, `CLIPModel` and
`CLIPVisionModelWithProjection` of transformers have them. Scores made of the
vectors are in `clip_score.py`.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spatialrl.models.attention import attend

_LEGACY_END = 2
_ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}
_normal = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class TowerConfig:
  """Sizes that both towers have.

  Attributes:
    width: D, channels of the tokens.
    hidden: channels inside the feed-forward.
    depth: number of blocks.
    heads: attention heads; must divide `width`.
    projection: P, channels of the shared space; 0 leaves the pooled vector as
      it is, of `width`.
    activation: "quick_gelu" (OpenAI's weights) or "gelu" (OpenCLIP's).
    epsilon: of the layer norms.
    dtype: of the activations.
  """

  width: int = 768
  hidden: int = 3072
  depth: int = 12
  heads: int = 12
  projection: int = 512
  activation: str = "quick_gelu"
  epsilon: float = 1e-5
  dtype: str = "float32"

  def __post_init__(self):
    if self.width % self.heads:
      raise ValueError(
          f"heads is {self.heads}; it must divide width {self.width}."
      )
    if self.activation not in _ACTIVATIONS:
      raise ValueError(
          f"activation is {self.activation!r}; allowed are"
          f" {sorted(_ACTIVATIONS)}."
      )


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(TowerConfig):
  """Sizes of the text tower, by default those of ViT-B/32.

  Attributes:
    vocabulary: number of token ids.
    max_tokens: longest text.
    end: id of the token whose state is pooled; see `end_positions`.
  """

  width: int = 512
  hidden: int = 2048
  heads: int = 8
  vocabulary: int = 49408
  max_tokens: int = 77
  end: int = 49407


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig(TowerConfig):
  """Sizes of the image tower, by default those of ViT-B/32.

  Attributes:
    image: S, pixels a side.
    patch: pixels a side of one token; must divide `image`.
  """

  image: int = 224
  patch: int = 32

  def __post_init__(self):
    super().__post_init__()
    if self.image % self.patch:
      raise ValueError(
          f"patch is {self.patch}; it must divide image {self.image}."
      )


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
  """Sizes of both towers, which end in the same space."""

  text: CLIPTextConfig
  vision: CLIPVisionConfig

  def __post_init__(self):
    if not self.text.projection == self.vision.projection > 0:
      raise ValueError(
          f"projection is {self.text.projection} for text and"
          f" {self.vision.projection} for images; both must be the same"
          " positive number."
      )


class TextStates(NamedTuple):
  """What the text tower gives.

  Attributes:
    hidden: f32[depth + 1, B, L, D], the embedded tokens, then the output of
      every block, none of them normed. SD3 takes `hidden[-2]`.
    last: f32[B, L, D], the normed output of the last block.
    pooled: f32[B, P], `last` at the end of the text, projected; f32[B, D]
      where the tower has no projection, as FLUX takes it.
  """

  hidden: jax.Array
  last: jax.Array
  pooled: jax.Array


class CLIPText(nn.Module):
  """Causal transformer over tokens.

  Call with ids i32[B, L] and mask bool[B, L], True at real tokens, or None for
  no mask, as SD3 and FLUX do; returns TextStates.
  """

  config: CLIPTextConfig

  @nn.compact
  def __call__(self, ids, mask=None):
    c = self.config
    batch, length = ids.shape
    if length > c.max_tokens:
      raise ValueError(
          f"ids has {length} tokens; max_tokens allows {c.max_tokens}."
      )
    words = self.param("words", _normal, (c.vocabulary, c.width))
    places = self.param("places", _normal, (c.max_tokens, c.width))
    x = jnp.take(words, ids, axis=0) + places[None, :length]
    x = x.astype(c.dtype)
    seen = jnp.tril(jnp.ones((1, length, length), bool))
    if mask is not None:
      seen = seen & mask[:, None]
    out, states = _blocks(c)(x, seen)
    last = _norm(c, "norm")(out)
    pooled = last[jnp.arange(batch), end_positions(ids, c.end)]
    pooled = _projected(c, pooled)
    hidden = jnp.concatenate([x[None], states])
    return TextStates(
        *(y.astype(jnp.float32) for y in (hidden, last, pooled))
    )


class CLIPVision(nn.Module):
  """Transformer over the patches of an image and one class token.

  Call with pixels f32[B, S, S, 3], normalised as `clip_score.preprocess` does;
  returns the token states f32[B, 1 + (S / patch)^2, D] before the last norm,
  and the class token normed and projected, f32[B, P] (f32[B, D] without a
  projection).
  """

  config: CLIPVisionConfig

  @nn.compact
  def __call__(self, pixels):
    c = self.config
    batch, height, width, channels = pixels.shape
    if (height, width) != (c.image, c.image):
      raise ValueError(
          f"pixels are {height} x {width}; the tower takes {c.image} x"
          f" {c.image}."
      )
    p, side = c.patch, c.image // c.patch
    x = pixels.reshape(batch, side, p, side, p, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, side * side, p * p * channels)
    x = nn.Dense(c.width, use_bias=False, dtype=c.dtype, name="patch_embed")(x)
    token = self.param("class_token", _normal, (c.width,))
    token = jnp.broadcast_to(token, (batch, 1, c.width))
    places = self.param("places", _normal, (1 + side * side, c.width))
    x = jnp.concatenate([token, x], axis=1) + places[None]
    x, _ = _blocks(c)(_norm(c, "pre_norm")(x), None)
    pooled = _projected(c, _norm(c, "norm")(x[:, 0]))
    return x.astype(jnp.float32), pooled.astype(jnp.float32)


class CLIP(nn.Module):
  """Both towers.

  Call with pixels f32[B, S, S, 3], ids i32[C, L] and mask bool[C, L] or None;
  returns unit vectors of the images f32[B, P] and of the texts f32[C, P], and
  the logarithm of the scale that the training put on their products, f32[].
  """

  config: CLIPConfig

  @nn.compact
  def __call__(self, pixels, ids, mask=None):
    c = self.config
    _, image = CLIPVision(c.vision, name="vision")(pixels)
    text = CLIPText(c.text, name="text")(ids, mask).pooled
    scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())
    image, text = (
        x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)
    )
    return image, text, scale.astype(jnp.float32)


class CLIPBlock(nn.Module):
  """One pre-norm block; `nn.scan` runs it over stacked parameters.

  Returns its output twice: as what the next block reads and as what is kept.
  """

  config: TowerConfig

  @nn.compact
  def __call__(self, x, mask):
    c = self.config
    normed = _norm(c, "norm1")(x)
    shape = (*x.shape[:2], c.heads, c.width // c.heads)
    q, k, v = (
        nn.Dense(c.width, dtype=c.dtype, name=part)(normed).reshape(shape)
        for part in ("q", "k", "v")
    )
    attended = attend(q, k, v, mask).reshape(x.shape)
    x = x + nn.Dense(c.width, dtype=c.dtype, name="out")(attended)
    hidden = nn.Dense(c.hidden, dtype=c.dtype, name="up")(_norm(c, "norm2")(x))
    hidden = _ACTIVATIONS[c.activation](hidden)
    x = x + nn.Dense(c.width, dtype=c.dtype, name="down")(hidden)
    return x, x


def end_positions(ids, end):
  """Where each text ends, by the rule of transformers.

  Configs of before 2023 say that `end` is 2, which it is not: for them the end
  is the largest id, which it is in CLIP's own vocabulary. Others have it at
  the first `end`. Padding may be `end` as well, so the first one counts.

  Args:
    ids: i32[B, L].
    end: `eos_token_id` of the config.

  Returns:
    i32[B]; 0 for a text without an end.
  """
  return jnp.argmax(ids if end == _LEGACY_END else ids == end, axis=1)


def conditioning(sizes, params, ids):
  """What SD3 and FLUX take of a text tower: no mask, padding included.

  Args:
    sizes: CLIPTextConfig.
    params: parameters of CLIPText.
    ids: i32[B, L].

  Returns:
    (f32[B, L, D] states before the last block, f32[B, P] pooled).
  """
  states = CLIPText(sizes).apply({"params": params}, ids)
  return states.hidden[-2], states.pooled


def _blocks(config):
  scanned = nn.scan(
      nn.remat(CLIPBlock, prevent_cse=False),
      variable_axes={"params": 0, "lora": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=config.depth,
  )
  return scanned(config, name="blocks")


def _norm(config, name):
  return nn.LayerNorm(epsilon=config.epsilon, dtype=config.dtype, name=name)


def _projected(config, x):
  if not config.projection:
    return x
  dense = nn.Dense(
      config.projection, use_bias=False, dtype=config.dtype, name="projection"
  )
  return dense(x)
