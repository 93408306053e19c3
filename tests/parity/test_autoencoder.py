"""The autoencoder against AutoencoderKL of diffusers, with its weights.

Golden images are channel-first; the tolerance is stated with the golden data.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.convert import folder, stream, vae
from spatialrl.models import autoencoder

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "models" / "vae"
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def model():
  return stream.load(GOLDEN, kind="vae")


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN / "io_0.npz") as data:
    return dict(data)


def last(x):
  return x.transpose(0, 2, 3, 1)


def test_the_table_has_every_parameter(model):
  config, params = model
  shapes = jax.eval_shape(
    lambda key: autoencoder.init(config, key), jax.random.key(0)
  )
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)


def test_every_output_of_the_check_file(model, golden):
  found = vae.outputs(*model, golden)
  inputs = {"image", "eps", "latent_random"}
  assert found.keys() == golden.keys() - inputs
  for name, value in found.items():
    np.testing.assert_allclose(
      value, golden[name], atol=TOLERANCE, rtol=0, err_msg=name
    )


def test_encoding_scales_and_shifts(model, golden):
  encode = jax.jit(autoencoder.encode, static_argnums=0)
  np.testing.assert_allclose(
    encode(*model, last(golden["image"])),
    last(golden["latent_scaled"]),
    atol=TOLERANCE,
  )


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_activations_in_half_precision(model, golden, stored):
  config, params = model
  config = dataclasses.replace(config, dtype="bfloat16")
  params = jax.tree.map(lambda x: x.astype(stored), params)
  decode = jax.jit(autoencoder.decode, static_argnums=0)
  found = decode(config, params, last(golden["latent_scaled"]))
  wanted = last(golden["decoded"])
  assert found.dtype == jnp.float32
  error = np.abs(found - wanted).max() / np.abs(wanted).max()
  assert 1e-4 < error < 0.1  # of bfloat16, not of float32


def test_every_convolution_is_in_the_chosen_dtype(model, golden):
  config, params = model
  config = dataclasses.replace(config, dtype="bfloat16")

  def reconstruct(params, image):
    latents = autoencoder.encode(config, params, image)
    return latents, autoencoder.decode(config, params, latents)

  made = jax.make_jaxpr(reconstruct)(params, last(golden["image"]))
  assert {x.aval.dtype for x in made.jaxpr.outvars} == {jnp.dtype("float32")}
  convolved = [
    eqn.outvars[0].aval.dtype
    for eqn in made.jaxpr.eqns
    if eqn.primitive.name == "conv_general_dilated"
  ]
  assert len(convolved) > 20 and set(convolved) == {jnp.dtype("bfloat16")}


def test_dtype_is_checked():
  with pytest.raises(ValueError, match="dtype is 'int8'; allowed are"):
    autoencoder.AutoencoderConfig(dtype="int8")


def decode_tiled(model, latents):
  """Tiles of 8 x 8 latent positions; channels first, like diffusers."""
  decode = jax.jit(autoencoder.decode_tiled, static_argnums=(0, 3))
  return np.asarray(decode(*model, last(latents), 8)).transpose(0, 3, 1, 2)


def theirs(latents):
  """Images of diffusers in tiles of 8 x 8; also made tiled.npz."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  network = diffusers.AutoencoderKL.from_pretrained(GOLDEN).eval()
  network.enable_tiling()
  network.tile_latent_min_size, network.tile_sample_min_size = 8, 64
  config = network.config
  z = latents / config.scaling_factor + config.shift_factor
  with torch.no_grad():
    return network.decode(torch.from_numpy(z)).sample.numpy()


def test_tiles(model):
  """Latents are standard normal of seed 0, images those of `theirs`."""
  with np.load(GOLDEN / "tiled.npz") as data:
    found = decode_tiled(model, data["latents"])
    np.testing.assert_allclose(found, data["images"], atol=TOLERANCE)


def test_tiles_that_are_cut_on_both_sides(model, rng):
  z = rng.standard_normal((1, 16, 10, 10)).astype(np.float32)
  wanted = theirs(z)
  np.testing.assert_allclose(decode_tiled(model, z), wanted, atol=TOLERANCE)


def test_what_fits_in_a_tile_is_decoded_whole(model, golden):
  found = decode_tiled(model, golden["latent_scaled"])
  np.testing.assert_allclose(found, golden["decoded"], atol=TOLERANCE)


def test_tile_is_checked(model):
  with pytest.raises(ValueError, match="tile is 6; allowed are positive"):
    autoencoder.decode_tiled(*model, np.zeros((1, 9, 9, 16)), 6)


@pytest.mark.parametrize(
  ("field", "value"),
  [("use_quant_conv", True), ("act_fn", "relu"), ("in_channels", 4)],
)
def test_other_autoencoders_are_refused(field, value):
  fields = folder.recognise(GOLDEN).fields
  with pytest.raises(ValueError, match=f"{field} is {value!r}; allowed is"):
    vae.read_config({**fields, field: value})
