"""The autoencoder against AutoencoderKL of diffusers, with its weights.

Golden images are channel-first; the tolerance is stated with the golden data.
"""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialrl.models import autoencoder

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "models" / "vae"
TOLERANCE = 5e-5
NAMES = (  # of diffusers and ours, applied in turn
  (r"(down|up)_blocks\.(\d)\.resnets\.(\d)", r"\1_\2_resnet_\3"),
  (r"(down|up)_blocks\.(\d)\.\w+samplers\.0\.conv", r"\1_\2_sample"),
  (r"mid_block\.resnets\.(\d)", r"mid.resnet_\1"),
  (r"mid_block\.attentions\.0\.group_norm", "mid.attention_norm"),
  (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attention_\1"),
  (r"mid_block\.attentions\.0\.to_out\.0", "mid.attention_out"),
  (r"conv_(shortcut|norm_out)", r"\1"),
)


def leaf(name, tensor):
  """One tensor as (path, value) of our tree."""
  for theirs, ours in NAMES:
    name = re.sub(theirs, ours, name)
  *path, kind = name.split(".")
  if kind == "bias":
    return [*path, kind], tensor
  if tensor.ndim == 1:
    return [*path, "scale"], tensor
  tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
  return [*path, "kernel"], tensor[0, 0] if path[-1] == "shortcut" else tensor


@pytest.fixture(scope="module")
def model():
  sizes = json.loads((GOLDEN / "config.json").read_text())
  config = autoencoder.AutoencoderConfig(
    channels=sizes["block_out_channels"],
    latents=sizes["latent_channels"],
    layers=sizes["layers_per_block"],
    groups=sizes["norm_num_groups"],
    scaling=sizes["scaling_factor"],
    shift=sizes["shift_factor"],
  )
  params = {}
  tensors = load_file(GOLDEN / "diffusion_pytorch_model.safetensors")
  for name, tensor in tensors.items():
    (*parents, last), value = leaf(name, tensor)
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return config, params


@pytest.fixture(scope="module")
def golden():
  data = np.load(GOLDEN / "io_0.npz")
  return {name: data[name].transpose(0, 2, 3, 1) for name in data.files}


def test_every_tensor_has_its_place(model):
  config, params = model
  shapes = jax.eval_shape(
    lambda key: autoencoder.init(config, key), jax.random.key(0)
  )
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)


def test_posterior(model, golden):
  mean, log_variance = autoencoder.posterior(*model, golden["image"])
  np.testing.assert_allclose(mean, golden["latent_mean"], atol=TOLERANCE)
  np.testing.assert_allclose(
    log_variance, golden["latent_logvar"], atol=TOLERANCE
  )


def test_encoding_scales_and_shifts(model, golden):
  np.testing.assert_allclose(
    autoencoder.encode(*model, golden["image"]),
    golden["latent_scaled"],
    atol=TOLERANCE,
  )


@pytest.mark.parametrize(
  ("latents", "images"),
  [("latent_scaled", "decoded"), ("latent_random", "decoded_random")],
)
def test_decoding(model, golden, latents, images):
  np.testing.assert_allclose(
    autoencoder.decode(*model, golden[latents]), golden[images], atol=TOLERANCE
  )
