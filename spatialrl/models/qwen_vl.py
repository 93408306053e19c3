"""Qwen2.5-VL: images and text in, token states or logits out.

Bai et al., arXiv:2502.13923, as `Qwen2_5_VLForConditionalGeneration` of
transformers has it, for still images and without a cache of keys and values:
it reads, it does not write.
"""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from spatialrl.models.attention import attend
from spatialrl.models.qwen_vision import VisionConfig, VisionTower, rotate
from spatialrl.parallel.mesh import keep_rows


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
  """Sizes of a Qwen2.5-VL; the defaults are those of the published 7B.

  Attributes:
    vision: sizes of the vision tower.
    vocabulary: rows of the embedding table.
    width: D, channels of the language model.
    hidden: channels inside its gated MLP.
    depth: number of its layers.
    heads: attention heads; must divide `width`.
    kv_heads: heads of keys and values; must divide `heads`.
    sections: rotary frequencies that turn with time, row and column; together
      half of the channels of a head.
    theta: base of the rotary frequencies.
    epsilon: of the norms.
    image_token: id in whose places the image tokens go.
    tied: the logits are read with the embedding table.
    dtype: of the activations.
    remat: recompute layers in the backward pass instead of storing them.
  """

  vision: VisionConfig = VisionConfig()
  vocabulary: int = 152064
  width: int = 3584
  hidden: int = 18944
  depth: int = 28
  heads: int = 28
  kv_heads: int = 4
  sections: tuple[int, ...] = (16, 24, 24)
  theta: float = 1e6
  epsilon: float = 1e-6
  image_token: int = 151655
  tied: bool = False
  dtype: str = "float32"
  remat: bool = True

  def __post_init__(self):
    object.__setattr__(self, "sections", tuple(self.sections))
    if self.width % self.heads:
      raise ValueError(
          f"heads is {self.heads}; it must divide width {self.width}."
      )
    if self.heads % self.kv_heads:
      raise ValueError(
          f"kv_heads is {self.kv_heads}; it must divide heads {self.heads}."
      )
    if 2 * sum(self.sections) != self.head_width:
      raise ValueError(
          f"sections is {self.sections}; its sum must be half of a head's"
          f" {self.head_width} channels."
      )
    if self.vision.out != self.width:
      raise ValueError(
          f"vision.out is {self.vision.out}; it must be width {self.width}."
      )

  @property
  def head_width(self):
    """d, channels of a head."""
    return self.width // self.heads


class QwenVL(nn.Module):
  """The whole model; call with `data.qwen_inputs.QwenInputs`, B rows of L.

  `embed` and `states` are the two halves of the way to the last states, so
  that embeddings can be changed in between. All results are float32.
  """

  config: QwenVLConfig

  def setup(self):
    c = self.config
    self.vision = VisionTower(c.vision, c.dtype, c.remat)
    self.words = self.param(
        "words", nn.initializers.normal(0.02), (c.vocabulary, c.width)
    )
    layer = nn.remat(_Layer, prevent_cse=False) if c.remat else _Layer
    self.layers = nn.scan(
        layer,
        variable_axes={"params": 0, "lora": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=c.depth,
    )(c)
    self.norm = nn.RMSNorm(c.epsilon, c.dtype)
    if not c.tied:
      self.lm_head = nn.Dense(c.vocabulary, False, c.dtype)

  def __call__(self, inputs):
    """Logits of the next token, f32[B, L, V]."""
    x = self.states(self.embed(inputs), inputs).astype(self.config.dtype)
    if self.config.tied:
      logits = x @ self.words.astype(x.dtype).T
    else:
      logits = self.lm_head(x)
    return logits.astype(jnp.float32)

  def see(self, inputs):
    """Tokens of all images, one image after the other: f32[T, D]."""
    c = self.config.vision
    rows = sum(math.prod(grid) for grid in inputs.grids)
    if inputs.patches.shape[0] != rows:
      raise ValueError(
          f"patches has {inputs.patches.shape[0]} rows; the grids"
          f" {inputs.grids} have {rows}."
      )
    tokens, start = [], 0
    for grid, run in itertools.groupby(inputs.grids):
      count = len(list(run))
      end = start + count * math.prod(grid)
      patches = inputs.patches[start:end].reshape(count, -1, c.patch_values)
      tokens.append(self.vision(patches, grid).reshape(-1, c.out))
      start = end
    return jnp.concatenate(tokens).astype(jnp.float32)

  def embed(self, inputs):
    """Embeddings with image tokens put in their places, f32[B, L, D]."""
    places = inputs.ids == self.config.image_token
    images = self.see(inputs)
    order = jnp.cumsum(places).reshape(places.shape) - 1
    words = self.words[inputs.ids].astype(jnp.float32)
    return jnp.where(places[..., None], images[order], words)

  def states(self, x, inputs):
    """Last states, after the final norm.

    Args:
      x: f32[B, L, D] embeddings.
      inputs: QwenInputs, whose positions and mask are read.

    Returns:
      f32[B, L, D]; those at padding mean nothing.
    """
    c = self.config
    length = x.shape[1]
    causal = np.tril(np.ones((length, length), bool))
    seen = causal[None] & inputs.mask[:, None]
    cos, sin = _rotary(c, inputs.positions)
    x, _ = self.layers(x.astype(c.dtype), cos, sin, seen)
    return self.norm(x).astype(jnp.float32)


class _Layer(nn.Module):
  config: QwenVLConfig

  @nn.compact
  def __call__(self, x, cos, sin, seen):
    c = self.config

    def dense(features, name, bias=False):
      return nn.Dense(features, bias, c.dtype, name=name)

    normed = nn.RMSNorm(c.epsilon, c.dtype, name="norm1")(x)
    q, k, v = (
        keep_rows(dense(heads * c.head_width, name, bias=True)(normed)).reshape(
            *x.shape[:2], heads, c.head_width
        )
        for name, heads in (
            ("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)
        )
    )
    attended = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, seen)
    x = keep_rows(x + dense(c.width, "out")(attended.reshape(x.shape)))
    normed = nn.RMSNorm(c.epsilon, c.dtype, name="norm2")(x)
    gate, up = (
        keep_rows(dense(c.hidden, name)(normed)) for name in ("gate", "up")
    )
    return keep_rows(x + dense(c.width, "down")(nn.silu(gate) * up)), None


def _rotary(config, positions):
  """cos, sin f32[B, L, 1, d / 2]; each frequency turns with one axis."""
  half = config.head_width // 2
  frequency = config.theta ** -(np.arange(half) / half)
  axis = np.repeat(np.arange(len(config.sections)) % 3, config.sections)
  position = jnp.moveaxis(positions, 0, -1)[..., axis].astype(jnp.float32)
  angle = position * frequency.astype(np.float32)[None, None]
  return jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
