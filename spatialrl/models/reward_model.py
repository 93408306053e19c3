"""SpatialScore's reward model: one image, one prompt, a Gaussian score.

SpatialScore (arXiv:2602.24233) reads the last-layer state of a reward token
appended to image and prompt and maps it to (mu, sigma) of the score. Head and
loss follow HPSv3, which that paper's design matches (our inference, the paper
does not print them). The backbone here is a small transformer over image
patches and word tokens, in place of a vision-language model.
"""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp

from spatialrl.models.text_encoder import TransformerBlock


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """Sizes of the reward model.

  Attributes:
    vocabulary: number of token ids.
    size: pixels a side of the images.
    patch: pixels a side of one image token.
    max_tokens: longest prompt.
    width: channels of every token.
    depth: transformer blocks.
    heads: attention heads; must divide `width`.
  """

  vocabulary: int
  size: int = 32
  patch: int = 4
  max_tokens: int = 24
  width: int = 128
  depth: int = 4
  heads: int = 4

  def __post_init__(self):
    if self.size % self.patch:
      raise ValueError(
          f"patch is {self.patch}; it must divide the image size {self.size}."
      )

    if self.width % self.heads:
      raise ValueError(
          f"heads is {self.heads}; it must divide width {self.width}."
      )

  def to_json(self):
    """The sizes as a JSON string, as stored beside the weights."""
    return json.dumps(dataclasses.asdict(self), sort_keys=True)

  @classmethod
  def from_json(cls, text):
    return cls(**json.loads(text))


def to_patches(config, images):
  """f32[B, S, S, 3] -> f32[B, P, patch * patch * 3], row by row."""
  side, p = config.size // config.patch, config.patch
  x = images.reshape(-1, side, p, side, p, 3).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(-1, side * side, p * p * 3)


class Backbone(nn.Module):
  """Image and prompt to last states, normed.

  Call with images f32[B, S, S, 3] in [-1, 1], ids i32[B, L], mask bool[B, L];
  returns that of the reward token f32[B, D] and those of the image's patches
  f32[B, P, D], row by row.
  """

  config: RewardConfig

  @nn.compact
  def __call__(self, images, ids, mask):
    c = self.config
    batch, side = images.shape[0], c.size // c.patch
    x = nn.Dense(c.width, name="patches")(to_patches(c, images))
    unit = nn.initializers.normal(1.0)
    x = x + self.param("positions", unit, (side * side, c.width))[None]
    words = self.param("words", unit, (c.vocabulary, c.width))
    places = self.param("places", unit, (c.max_tokens, c.width))
    token = self.param("reward_token", unit, (c.width,))
    text = words[ids] + places[None, : ids.shape[1]]
    token = jnp.broadcast_to(token, (batch, 1, c.width))
    x = jnp.concatenate([x, text, token], axis=1)
    seen = jnp.concatenate(
        [jnp.ones((batch, side**2), bool), mask, jnp.ones((batch, 1), bool)], 1
    )
    for i in range(c.depth):
      x = TransformerBlock(c.width, c.heads, name=f"block_{i}")(x, seen)
    x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
    return x[:, -1], x[:, : side**2]


class RewardModel(nn.Module):
  """Backbone and float32 head: (mu f32[B], log sigma f32[B])."""

  config: RewardConfig

  @nn.compact
  def __call__(self, images, ids, mask):
    state, _ = Backbone(self.config, name="backbone")(images, ids, mask)
    x = state.astype(jnp.float32)
    x = nn.relu(nn.Dense(self.config.width, name="head_in")(x))
    out = nn.Dense(2, name="head_out")(x)
    # HPSv3 leaves log sigma free; the bound keeps a pair that is always right
    # from pushing it to minus infinity.
    return out[:, 0], 4.0 * jnp.tanh(out[:, 1] / 4.0)


def init(config, key):
  """Random weights of a RewardModel."""
  images = jnp.zeros((1, config.size, config.size, 3))
  ids = jnp.zeros((1, config.max_tokens), jnp.int32)
  variables = RewardModel(config).init(
      key, images, ids, jnp.ones(ids.shape, bool)
  )
  return variables["params"]


def score(config, params, images, ids, mask):
  """(mu f32[B], sigma f32[B]) of images under prompts."""
  mu, log_sigma = RewardModel(config).apply(
      {"params": params}, images, ids, mask
  )
  return mu, jnp.exp(log_sigma)


def log_score(config, params, images, ids, mask):
  """(mu f32[B], log sigma f32[B]), what the preference loss takes."""
  return RewardModel(config).apply({"params": params}, images, ids, mask)


def count(params):
  """Number of weights in a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
