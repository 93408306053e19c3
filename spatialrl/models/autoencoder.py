"""AutoencoderKL: images to latents an eighth as large, and back.

The variational autoencoder of Stable Diffusion 3 and FLUX (Rombach et al.,
arXiv:2112.10752), laid out as `AutoencoderKL` of diffusers with its two
1x1 convolutions around the latents left out, as both models leave them out.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from spatialrl.models.attention import attend

_DTYPES = ("float32", "bfloat16", "float16")
_OVERLAP = 0.25  # of a tile with the next one, as diffusers has it


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """Sizes of an autoencoder.

  Attributes:
    channels: of each level, finest first; each level but the last halves the
      image.
    latents: channels of the latents.
    layers: residual blocks of a level; the decoder has one more.
    groups: of the group norms; must divide all of `channels`.
    scaling: the policy sees (z - shift) * scaling, of about unit spread.
    shift: see `scaling`.
    dtype: of the activations; statistics, softmax and results are float32.
  """

  channels: tuple = (128, 256, 512, 512)
  latents: int = 16
  layers: int = 2
  groups: int = 32
  scaling: float = 1.0
  shift: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    if self.dtype not in _DTYPES:
      raise ValueError(f"dtype is {self.dtype!r}; allowed are {_DTYPES}.")
    object.__setattr__(self, "channels", tuple(self.channels))
    for width in self.channels:
      if width % self.groups:
        raise ValueError(
            f"groups is {self.groups}; it must divide channels {width}."
        )

  @property
  def factor(self):
    """Pixels a side of one latent position."""
    return 2 ** (len(self.channels) - 1)


class Encoder(nn.Module):
  """f32[B, S, S, 3] -> (mean, log variance), each [B, S/f, S/f, latents]."""

  config: AutoencoderConfig

  @nn.compact
  def __call__(self, x):
    c = self.config
    conv = functools.partial(_conv, dtype=c.dtype)
    x = conv(c.channels[0], "conv_in")(x)
    for i, width in enumerate(c.channels):
      for j in range(c.layers):
        x = _ResNet(width, c.groups, c.dtype, name=f"down_{i}_resnet_{j}")(x)
      if i < len(c.channels) - 1:
        # One row and one column of padding, below and on the right only.
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        x = nn.Conv(
            width, (3, 3), (2, 2), padding="VALID", dtype=c.dtype,
            name=f"down_{i}_sample",
        )(x)
    x = _Middle(c.groups, c.dtype, name="mid")(x)
    x = nn.silu(_norm(c.groups, "norm_out", c.dtype)(x))
    x = conv(2 * c.latents, "conv_out")(x).astype(jnp.float32)
    mean, log_variance = jnp.split(x, 2, axis=-1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)


class Decoder(nn.Module):
  """Latents [B, h, w, latents] -> f32[B, h f, w f, 3], not clipped."""

  config: AutoencoderConfig

  @nn.compact
  def __call__(self, z):
    c = self.config
    conv = functools.partial(_conv, dtype=c.dtype)
    x = conv(c.channels[-1], "conv_in")(z)
    x = _Middle(c.groups, c.dtype, name="mid")(x)
    for i, width in enumerate(reversed(c.channels)):
      for j in range(c.layers + 1):
        x = _ResNet(width, c.groups, c.dtype, name=f"up_{i}_resnet_{j}")(x)
      if i < len(c.channels) - 1:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        x = conv(width, f"up_{i}_sample")(x)
    x = nn.silu(_norm(c.groups, "norm_out", c.dtype)(x))
    return conv(3, "conv_out")(x).astype(jnp.float32)


def init(config, key):
  """Random weights: {"encoder": ..., "decoder": ...}."""
  encoder_key, decoder_key = jax.random.split(key)
  f = config.factor
  x, z = jnp.zeros((1, f, f, 3)), jnp.zeros((1, 1, 1, config.latents))
  return {
      "encoder": Encoder(config).init(encoder_key, x)["params"],
      "decoder": Decoder(config).init(decoder_key, z)["params"],
  }


def posterior(config, params, images):
  """(mean, log variance) of z given images f32[B, S, S, 3] in [-1, 1].

  Both are f32[B, S/f, S/f, latents], neither scaled nor shifted.
  """
  return Encoder(config).apply({"params": params["encoder"]}, images)


def encode(config, params, images):
  """The latents a policy sees: f32[B, S, S, 3] -> f32[B, S/f, S/f, latents]."""
  mean, _ = posterior(config, params, images)
  return (mean - config.shift) * config.scaling


def decode(config, params, latents):
  """Inverse of `encode`, as far as it goes; images are not clipped."""
  z = latents / config.scaling + config.shift
  return Decoder(config).apply({"params": params["decoder"]}, z)


def decode_tiled(config, params, latents, tile):
  """`decode` of large latents in overlapping tiles, at the memory of one tile.

  Neighbours share a quarter of a tile and are blended linearly there. A tile
  has its own norm statistics and attention, so the image is close to that of
  `decode` but not the same. As `AutoencoderKL` of diffusers with tiling on.

  Args:
    config: AutoencoderConfig.
    params: see `init`.
    latents: f32[B, h, w, latents], of any h and w.
    tile: latent positions a side, a multiple of 4; 128 is what diffusers takes
      for SD3 and FLUX.

  Returns:
    f32[B, h f, w f, 3].

  Raises:
    ValueError: if `tile` is no positive multiple of 4.
  """
  if tile < 4 or tile % 4:
    raise ValueError(f"tile is {tile}; allowed are positive multiples of 4.")
  _, height, width, _ = latents.shape
  if max(height, width) <= tile:
    return decode(config, params, latents)
  cut = {
      (i, j): latents[:, y : y + tile, x : x + tile]
      for i, y in enumerate(_starts(height, tile))
      for j, x in enumerate(_starts(width, tile))
  }
  tiles = _decode_grouped(config, params, cut)
  extent = int(tile * _OVERLAP) * config.factor
  kept = tile * config.factor - extent
  rows = {}
  for i, j in sorted(tiles):
    if i:
      tiles[i, j] = _blend(tiles[i - 1, j], tiles[i, j], extent, axis=1)
    if j:
      tiles[i, j] = _blend(tiles[i, j - 1], tiles[i, j], extent, axis=2)
    rows.setdefault(i, []).append(tiles[i, j][:, :kept, :kept])
  return jnp.concatenate(
      [jnp.concatenate(row, axis=2) for row in rows.values()], axis=1
  )


class _ResNet(nn.Module):
  width: int
  groups: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    hidden = nn.silu(_norm(self.groups, "norm1", self.dtype)(x))
    hidden = _conv(self.width, "conv1", self.dtype)(hidden)
    hidden = nn.silu(_norm(self.groups, "norm2", self.dtype)(hidden))
    hidden = _conv(self.width, "conv2", self.dtype)(hidden)
    if x.shape[-1] != self.width:
      x = nn.Dense(self.width, dtype=self.dtype, name="shortcut")(x)
    return x + hidden


class _Middle(nn.Module):
  groups: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1]
    dense = functools.partial(nn.Dense, width, dtype=self.dtype)
    x = _ResNet(width, self.groups, self.dtype, name="resnet_0")(x)
    places = _norm(self.groups, "attention_norm", self.dtype)(x)
    places = places.reshape(x.shape[0], -1, 1, width)
    q, k, v = (dense(name=f"attention_{p}")(places) for p in "qkv")
    out = dense(name="attention_out")(attend(q, k, v))
    x = x + out.reshape(x.shape)
    return _ResNet(width, self.groups, self.dtype, name="resnet_1")(x)


def _norm(groups, name, dtype):
  return nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, name=name)


def _conv(width, name, dtype):
  return nn.Conv(width, (3, 3), padding=1, dtype=dtype, name=name)


def _starts(side, tile):
  """Where the tiles of one axis start; each covers a quarter of the one before.
  """
  return range(0, side, tile - int(tile * _OVERLAP))


def _decode_grouped(config, params, cut):
  """Decodes tiles by place, those of equal shape in one loop after each other.

  Only so many networks are compiled as there are shapes, at most nine, and
  only one tile is decoded at a time.
  """
  groups = {}
  for place, tile in cut.items():
    groups.setdefault(tile.shape, []).append(place)
  decoded = {}
  for places in groups.values():
    stack = jnp.stack([cut[place] for place in places])
    images = jax.lax.map(lambda z: decode(config, params, z), stack)
    decoded |= dict(zip(places, images, strict=True))
  return decoded


def _blend(before, tile, extent, axis):
  """`tile` faded in over the last `extent` positions of the one before it."""
  extent = min(before.shape[axis], tile.shape[axis], extent)
  ramp = jnp.arange(extent, dtype=tile.dtype) / extent
  ramp = ramp.reshape([-1 if i == axis else 1 for i in range(tile.ndim)])
  start = before.shape[axis] - extent
  end = jax.lax.slice_in_dim(before, start, None, axis=axis)
  head, rest = jnp.split(tile, [extent], axis=axis)
  return jnp.concatenate([end * (1 - ramp) + head * ramp, rest], axis=axis)
