"""The Checker's network: looks for two things and says what relates them.

Each thing is looked for in the picture as its colour filters the pixels, so
what is learned of one colour serves all. A glance at the whole picture says
roughly where it is: every cell of a grid says how much it looks like the thing
and where its box would be. A look at that place, cut out and scaled to one
size, with the pixels as they are beside the filtered ones, says whether it is
there and where exactly; what holds is read from the two looks. Detectors in two
stages do the same (Faster R-CNN, arXiv:1506.01497, with the bilinear crop of
Mask R-CNN, arXiv:1703.06870). RL-RIG's Checker is a vision-language model; this
one is ours.
"""

import dataclasses
import json
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spatialrl.io import assets
from spatialrl.scenes import graph as graphs

_PATCH = 4  # pixels a side of a cell of the glance
_LEAST = 0.1  # a look takes in at least this share of the side, to each side


@dataclasses.dataclass(frozen=True)
class CheckerConfig:
  """Sizes of the Checker.

  Attributes:
    size: pixels a side of the images.
    tints: functions of a pixel's colour.
    masks: pictures that a thing's colour makes of them.
    channels: of the glance's layers, over patches of 4 pixels a side.
    crop: pixels a side of what a look takes in.
    look: channels of its convolutions; all but the first halve the crop.
    width: channels of what is known of a thing.
  """

  size: int = 32
  tints: int = 16
  masks: int = 4
  channels: tuple = (48, 32, 32)
  crop: int = 16
  look: tuple = (32, 48, 64)
  width: int = 128

  def __post_init__(self):
    object.__setattr__(self, "channels", tuple(self.channels))
    object.__setattr__(self, "look", tuple(self.look))
    if self.size < 1 or self.size % _PATCH or not self.channels:
      raise ValueError(
          f"size is {self.size} and channels {self.channels}; size must be a"
          f" multiple of {_PATCH}, and at least one layer is needed."
      )
    halved = 2 ** max(len(self.look) - 1, 0)
    if self.crop < 1 or self.crop % halved or not self.look:
      raise ValueError(
          f"crop is {self.crop} and look {self.look}; crop must be a multiple"
          f" of {halved}, since all layers but the first halve it, and at least"
          " one is needed."
      )

  def to_json(self):
    """The sizes as a JSON string, as stored beside the weights."""
    return json.dumps(dataclasses.asdict(self), sort_keys=True)

  @classmethod
  def from_json(cls, text):
    return cls(**json.loads(text))


class Seen(NamedTuple):
  """What the Checker sees of two things in B pictures.

  Attributes:
    holds: f32[B, P], logits of "the first PREDICATE the second" in the order of
      `graph.OPPOSITE`.
    found: f32[B, 2], logits of being there.
    boxes: f32[B, 2, 4], shares of the side.
    glance_found: f32[B, 2], `found` as the glance has it.
    glance_boxes: f32[B, 2, 4], `boxes` as the glance has them.
  """

  holds: jax.Array
  found: jax.Array
  boxes: jax.Array
  glance_found: jax.Array
  glance_boxes: jax.Array


class Checker(nn.Module):
  """What holds between two things of a picture, and where they are.

  Call with images f32[B, S, S, 3] in [-1, 1] and things i32[B, 2, 2], the
  indices of colour and shape; returns `Seen`.
  """

  config: CheckerConfig

  @nn.compact
  def __call__(self, images, things):
    c, count = self.config, len(images)
    unit = nn.initializers.normal(1.0)
    colours = self.param(
        "colours", unit, (len(graphs.COLOURS), c.tints, c.masks)
    )
    shapes = self.param("shapes", unit, (len(graphs.SHAPES), c.width))
    hue = colours[things[..., 0]]
    kind = shapes[things[..., 1]].reshape(2 * count, 1, c.width)
    tint = nn.gelu(nn.Dense(c.tints, name="tints")(images))
    masks = jnp.einsum("bxyt,bntm->bnxym", tint, hue) / c.tints**0.5
    masks = masks.reshape(2 * count, *masks.shape[2:])
    rough, where = _Glance(c, name="glance")(masks, kind)
    pixels = jnp.repeat(images, 2, axis=0)
    middle, reach = _around(jax.lax.stop_gradient(where))
    part = crop(jnp.concatenate([masks, pixels], -1), middle, reach, c.crop)
    x, found, box = _Look(c, name="look")(part, kind[:, 0])
    boxes = (middle[:, None] + reach[:, None, None] * box).reshape(-1, 4)
    pair = jnp.concatenate([x, 10 * boxes - 5], -1).reshape(count, -1)
    for i in range(2):
      pair = nn.gelu(nn.Dense(2 * c.width, name=f"relate_{i}")(pair))
    stand = nn.Dense(len(graphs.OPPOSITE), name="holds")(pair)
    found = found.reshape(count, 2)
    both = nn.log_sigmoid(found).sum(-1, keepdims=True)
    yes = both + nn.log_sigmoid(stand)
    holds = yes - jnp.log(-jnp.expm1(jnp.minimum(yes, -1e-6)))
    scale, shift = self.param("calibration", lambda _: jnp.array([1.0, 0.0]))
    return Seen(
        scale * holds + shift, found, boxes.reshape(count, 2, 4),
        rough.reshape(count, 2), where.reshape(count, 2, 4),
    )


class _Glance(nn.Module):
  """Where a thing might be: masks f32[N, S, S, M], kind f32[N, 1, D].

  Returns logits of being there f32[N] and boxes f32[N, 4].
  """

  config: CheckerConfig

  @nn.compact
  def __call__(self, x, kind):
    c = self.config
    for i, width in enumerate(c.channels):
      size, stride = (3, 1) if i else (_PATCH, _PATCH)
      x = nn.gelu(nn.Conv(width, (size, size), stride, name=f"conv_{i}")(x))
    at = (jnp.arange(x.shape[1]) + 0.5) / x.shape[1]
    corners = jnp.tile(jnp.stack(jnp.meshgrid(at, at), -1), 2).reshape(-1, 4)
    x = x.reshape(len(x), -1, x.shape[-1])
    x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
    kind = nn.Dense(x.shape[-1], name="kind")(kind)
    x = nn.gelu(nn.Dense(x.shape[-1], name="match")(x * kind) + x)
    seen = nn.Dense(5, name="sight")(x)
    like, boxes = seen[..., 0], corners[None] + seen[..., 1:]
    boxes = (nn.softmax(like)[..., None] * boxes).sum(1)
    return nn.logsumexp(like, -1), boxes


class _Look(nn.Module):
  """What is in a crop f32[N, G, G, M + 3] for a kind f32[N, D].

  Returns what was seen f32[N, D], the logit of being there f32[N], and the
  corners f32[N, 2, 2] in units of the crop's reach, from its middle.
  """

  config: CheckerConfig

  @nn.compact
  def __call__(self, x, kind):
    c = self.config
    for i, width in enumerate(c.look):
      conv = nn.Conv(width, (3, 3), 2 if i else 1, name=f"conv_{i}")
      x = nn.gelu(conv(x))
    x = nn.Dense(c.width, name="all")(x.reshape(len(x), -1))
    x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
    x = nn.gelu(nn.Dense(c.width, name="match")(x * kind) + x)
    seen = nn.Dense(5, name="sight")(x)
    usual = jnp.array([[-0.6, -0.6], [0.6, 0.6]])  # of a box in its crop
    return x, seen[:, 0], usual[None] + seen[:, 1:].reshape(-1, 2, 2)


def _around(boxes):
  """Middle f32[N, 2] and half the side f32[N] of the square to look at.

  It has room for a glance that is off by a third of the box.
  """
  low, high = boxes[:, :2], boxes[:, 2:]
  half = jnp.clip((high - low).max(-1) / 2, 0.0, 0.5)
  return (low + high) / 2, jnp.maximum(1.6 * half, _LEAST)


def crop(x, middle, reach, side):
  """Cuts a square out of each picture and scales it, bilinearly.

  Args:
    x: f32[N, S, S, C].
    middle: f32[N, 2], (x, y) as shares of the side.
    reach: f32[N], half the side of the square, likewise.
    side: int G, pixels a side of what comes out.

  Returns:
    f32[N, G, G, C]; zero where the square leaves the picture.
  """
  size = x.shape[1]
  at = (2 * jnp.arange(side) + 1) / side - 1  # of the pixels, in the square
  at = middle[..., None] + reach[:, None, None] * at[None, None]
  pixel = size * at[..., None] - 0.5 - jnp.arange(size)[None, None, None]
  share = jnp.maximum(1 - jnp.abs(pixel), 0)  # f32[N, 2, G, S]
  rows = jnp.einsum("ngs,nstc->ngtc", share[:, 1], x)
  return jnp.einsum("nht,ngtc->nghc", share[:, 0], rows)


def init(config, key):
  """Random weights."""
  images = jnp.zeros((1, config.size, config.size, 3))
  things = jnp.zeros((1, 2, 2), jnp.int32)
  return Checker(config).init(key, images, things)["params"]


def apply(config, params, images, things):
  """What the `Checker` sees, `Seen`."""
  return Checker(config).apply({"params": params}, images, things)


def load(name):
  """A trained Checker: (CheckerConfig, weights as numpy arrays).

  Raises:
    ValueError: if the file is missing, cut short or of another model.
  """
  params, metadata = assets.load(name)
  if "checker" not in metadata:
    raise ValueError(f"weights {str(name)!r} are not those of a Checker.")
  if "look" not in json.loads(metadata["checker"]):
    raise ValueError(
        f"weights {str(name)!r} are of a Checker that looked once; remove the"
        " phase's folder, so that it is taught again."
    )
  config = CheckerConfig.from_json(metadata["checker"])
  shapes = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
  assets.check_shapes(params, shapes, str(name))
  return config, params
