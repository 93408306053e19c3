"""AutoencoderKL: images to latents an eighth as large, and back.

The variational autoencoder of Stable Diffusion 3 and FLUX (Rombach et al.,
arXiv:2112.10752), laid out as `AutoencoderKL` of diffusers with its two
1x1 convolutions around the latents left out, as both models leave them out.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from spatialrl.models.attention import attend


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
  """

  channels: tuple = (128, 256, 512, 512)
  latents: int = 16
  layers: int = 2
  groups: int = 32
  scaling: float = 1.0
  shift: float = 0.0

  def __post_init__(self):
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
    x = _conv(c.channels[0], "conv_in")(x)
    for i, width in enumerate(c.channels):
      for j in range(c.layers):
        x = _ResNet(width, c.groups, name=f"down_{i}_resnet_{j}")(x)
      if i < len(c.channels) - 1:
        # One row and one column of padding, below and on the right only.
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        x = nn.Conv(
            width, (3, 3), (2, 2), padding="VALID", name=f"down_{i}_sample"
        )(x)
    x = _Middle(c.groups, name="mid")(x)
    x = nn.silu(_norm(c.groups, "norm_out")(x))
    mean, log_variance = jnp.split(
        _conv(2 * c.latents, "conv_out")(x), 2, axis=-1
    )
    return mean, jnp.clip(log_variance, -30.0, 20.0)


class Decoder(nn.Module):
  """Latents [B, h, w, latents] -> f32[B, h f, w f, 3], not clipped."""

  config: AutoencoderConfig

  @nn.compact
  def __call__(self, z):
    c = self.config
    x = _Middle(c.groups, name="mid")(_conv(c.channels[-1], "conv_in")(z))
    for i, width in enumerate(reversed(c.channels)):
      for j in range(c.layers + 1):
        x = _ResNet(width, c.groups, name=f"up_{i}_resnet_{j}")(x)
      if i < len(c.channels) - 1:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        x = _conv(width, f"up_{i}_sample")(x)
    x = nn.silu(_norm(c.groups, "norm_out")(x))
    return _conv(3, "conv_out")(x)


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


class _ResNet(nn.Module):
  width: int
  groups: int

  @nn.compact
  def __call__(self, x):
    hidden = nn.silu(_norm(self.groups, "norm1")(x))
    hidden = _conv(self.width, "conv1")(hidden)
    hidden = nn.silu(_norm(self.groups, "norm2")(hidden))
    hidden = _conv(self.width, "conv2")(hidden)
    if x.shape[-1] != self.width:
      x = nn.Dense(self.width, name="shortcut")(x)
    return x + hidden


class _Middle(nn.Module):
  groups: int

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1]
    x = _ResNet(width, self.groups, name="resnet_0")(x)
    places = _norm(self.groups, "attention_norm")(x)
    places = places.reshape(x.shape[0], -1, 1, width)
    q, k, v = (nn.Dense(width, name=f"attention_{p}")(places) for p in "qkv")
    out = nn.Dense(width, name="attention_out")(attend(q, k, v))
    x = x + out.reshape(x.shape)
    return _ResNet(width, self.groups, name="resnet_1")(x)


def _norm(groups, name):
  return nn.GroupNorm(groups, epsilon=1e-6, name=name)


def _conv(width, name):
  return nn.Conv(width, (3, 3), padding=1, name=name)
