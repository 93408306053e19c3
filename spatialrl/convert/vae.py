"""AutoencoderKL: tensors of diffusers' class and their places with us."""

import re

import jax
import numpy as np

from spatialrl.convert.table import Entry, flat
from spatialrl.models import autoencoder
from spatialrl.models.autoencoder import AutoencoderConfig

SKIPPED = ()
_ONLY = {
  "act_fn": "silu",
  "in_channels": 3,
  "out_channels": 3,
  "mid_block_add_attention": True,
  "use_quant_conv": False,
  "use_post_quant_conv": False,
}
_KINDS = {
  "down_block_types": "DownEncoderBlock2D",
  "up_block_types": "UpDecoderBlock2D",
}
_NAMES = (  # of ours and diffusers, applied in turn
  (r"(down|up)_(\d+)_resnet_(\d+)", r"\1_blocks.\2.resnets.\3"),
  (r"(down|up)_(\d+)_sample", r"\1_blocks.\2.\1samplers.0.conv"),
  (r"mid/resnet_(\d)", r"mid_block.resnets.\1"),
  (r"mid/attention_norm", "mid_block.attentions.0.group_norm"),
  (r"mid/attention_([qkv])", r"mid_block.attentions.0.to_\1"),
  (r"mid/attention_out", "mid_block.attentions.0.to_out.0"),
  (r"\b(shortcut|norm_out)", r"conv_\1"),
  (r"/", "."),
  (r"\.(kernel|scale)$", ".weight"),
)


def read_config(fields):
  """AutoencoderConfig from a config.json.

  Raises:
    KeyError: for a field that is missing.
    ValueError: for a value that the autoencoders of SD3 and FLUX do not have.
  """
  for name, value in _ONLY.items():
    # Written only since diffusers 0.25; before, both convolutions were there.
    found = fields.get(name, True if "quant" in name else value)
    if found != value:
      raise ValueError(f"{name} is {found!r}; allowed is {value!r}.")
  for name, kind in _KINDS.items():
    if set(fields.get(name, (kind,))) != {kind}:
      raise ValueError(f"{name} is {fields[name]}; allowed is {kind!r} alone.")
  return AutoencoderConfig(
    channels=fields["block_out_channels"],
    latents=fields["latent_channels"],
    layers=fields["layers_per_block"],
    groups=fields["norm_num_groups"],
    scaling=fields["scaling_factor"],
    shift=fields.get("shift_factor") or 0.0,
  )


def table(sizes):
  """Every weight of an autoencoder, as a tuple of Entry."""
  shapes = jax.eval_shape(
    lambda key: autoencoder.init(sizes, key), jax.random.key(0)
  )
  return tuple(_entry(path, leaf.shape) for path, leaf in flat(shapes).items())


def outputs(sizes, params, arrays):
  """The latents of `image`, and the images of the latents that are there.

  Args:
    sizes: AutoencoderConfig.
    params: the tree of `autoencoder.init`.
    arrays: "image" and "eps", the noise of a sample; "latent_scaled" and
      "latent_random", what a policy sees. All [B, C, H, W].

  Returns:
    dict: "latent_mean", "latent_logvar", "latent_sample" and "latent_scaled";
    "decoded" and "decoded_random".
  """
  found = {}
  if "image" in arrays:
    mean, log_variance = jax.jit(autoencoder.posterior, static_argnums=0)(
      sizes, params, _channels_last(arrays["image"])
    )
    found["latent_mean"], found["latent_logvar"] = mean, log_variance
    found["latent_scaled"] = (mean - sizes.shift) * sizes.scaling
    if "eps" in arrays:
      eps = _channels_last(arrays["eps"])
      found["latent_sample"] = mean + np.exp(log_variance / 2) * eps
  decode = jax.jit(autoencoder.decode, static_argnums=0)
  for latents, images in (
    ("latent_scaled", "decoded"), ("latent_random", "decoded_random")
  ):
    if latents in arrays:
      found[images] = decode(sizes, params, _channels_last(arrays[latents]))
  return {
    name: np.asarray(value).transpose(0, 3, 1, 2)
    for name, value in found.items()
  }


def _entry(path, shape):
  name = path
  for ours, theirs in _NAMES:
    name = re.sub(ours, theirs, name)
  if not path.endswith("kernel"):
    return Entry(name, shape, path)
  if len(shape) == 4:
    height, width, channels, out = shape
    return Entry(name, (out, channels, height, width), path, "conv")
  channels, out = shape
  if path.endswith("shortcut/kernel"):  # A convolution of one position.
    return Entry(name, (out, channels, 1, 1), path, "patch")
  return Entry(name, (out, channels), path, "dense")


def _channels_last(x):
  return np.asarray(x).transpose(0, 2, 3, 1)
