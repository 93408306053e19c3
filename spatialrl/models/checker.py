"""The Checker's network: looks for two things and says what relates them.

Each thing is looked for in the picture as its colour filters the pixels, so
what is learned of one colour serves all. Every cell of a grid says how much it
looks like the thing and where its box would be; the answers are read from what
was seen of both things. RL-RIG's Checker is a vision-language model; this one
is ours.
"""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp

from spatialrl.io import assets
from spatialrl.scenes import graph as graphs


@dataclasses.dataclass(frozen=True)
class CheckerConfig:
  """Sizes of the Checker.

  Attributes:
    size: pixels a side of the images.
    tints: functions of a pixel's colour.
    masks: pictures that a thing's colour makes of them.
    channels: of the convolutions; the first two halve the picture.
    width: channels of what is known of a thing.
  """

  size: int = 32
  tints: int = 16
  masks: int = 4
  channels: tuple = (24, 48, 64)
  width: int = 128

  def __post_init__(self):
    object.__setattr__(self, "channels", tuple(self.channels))
    if self.size % 4 or len(self.channels) < 2:
      raise ValueError(
          f"size is {self.size} and channels {self.channels}; the first two"
          " convolutions must halve the picture."
      )

  def to_json(self):
    """The sizes as a JSON string, as stored beside the weights."""
    return json.dumps(dataclasses.asdict(self), sort_keys=True)

  @classmethod
  def from_json(cls, text):
    return cls(**json.loads(text))


class Checker(nn.Module):
  """What holds between two things of a picture, and where they are.

  Call with images f32[B, S, S, 3] in [-1, 1] and things i32[B, 2, 2], the
  indices of colour and shape; returns logits f32[B, P] of "the first PREDICATE
  the second" in the order of `graph.OPPOSITE`, logits f32[B, 2] of being there,
  and boxes f32[B, 2, 4] as shares of the side.
  """

  config: CheckerConfig

  @nn.compact
  def __call__(self, images, things):
    c, rows = self.config, 2 * images.shape[0]
    unit = nn.initializers.normal(1.0)
    colours = self.param(
        "colours", unit, (len(graphs.COLOURS), c.tints, c.masks)
    )
    shapes = self.param("shapes", unit, (len(graphs.SHAPES), c.width))
    hue, kind = colours[things[..., 0]], shapes[things[..., 1]]
    tint = nn.gelu(nn.Dense(c.tints, name="tints")(images))
    x = jnp.einsum("bxyt,bntm->bnxym", tint, hue) / c.tints**0.5
    x = x.reshape(rows, *x.shape[2:])
    for i, width in enumerate(c.channels):
      kernel, stride = 3 if i else 5, 2 if i < 2 else 1
      conv = nn.Conv(width, (kernel, kernel), stride, name=f"conv_{i}")
      x = nn.gelu(conv(x))
    at = (jnp.arange(x.shape[1]) + 0.5) / x.shape[1]
    corners = jnp.tile(jnp.stack(jnp.meshgrid(at, at), -1), 2).reshape(-1, 4)
    x = nn.Dense(c.width, name="cells")(x)
    x = x.reshape(*kind.shape[:2], len(corners), c.width)
    x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
    x = nn.gelu(nn.Dense(c.width, name="match")(x * kind[:, :, None]) + x)
    seen = nn.Dense(5, name="sight")(x)
    like, boxes = seen[..., 0], corners[None, None] + seen[..., 1:]
    found = nn.logsumexp(like, -1)
    share = nn.softmax(like)[..., None]
    x, boxes = (share * x).sum(2), (share * boxes).sum(2)
    pair = jnp.concatenate([x, 10 * boxes - 5], -1).reshape(len(images), -1)
    for i in range(2):
      pair = nn.gelu(nn.Dense(2 * c.width, name=f"relate_{i}")(pair))
    stand = nn.Dense(len(graphs.OPPOSITE), name="holds")(pair)
    both = nn.log_sigmoid(found).sum(-1, keepdims=True)
    yes = both + nn.log_sigmoid(stand)
    holds = yes - jnp.log(-jnp.expm1(jnp.minimum(yes, -1e-6)))
    scale, shift = self.param("calibration", lambda _: jnp.array([1.0, 0.0]))
    return scale * holds + shift, found, boxes


def init(config, key):
  """Random weights."""
  images = jnp.zeros((1, config.size, config.size, 3))
  things = jnp.zeros((1, 2, 2), jnp.int32)
  return Checker(config).init(key, images, things)["params"]


def apply(config, params, images, things):
  """(holds f32[B, P], found f32[B, 2], boxes f32[B, 2, 4]) of `Checker`."""
  return Checker(config).apply({"params": params}, images, things)


def load(name):
  """A trained Checker: (CheckerConfig, weights as numpy arrays).

  Raises:
    ValueError: if the file is missing, cut short or of another model.
  """
  params, metadata = assets.load(name)
  if "checker" not in metadata:
    raise ValueError(f"weights {str(name)!r} are not those of a Checker.")
  config = CheckerConfig.from_json(metadata["checker"])
  shapes = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
  assets.check_shapes(params, shapes, str(name))
  return config, params
