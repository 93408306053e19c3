"""Flux against FluxTransformer2DModel of diffusers, with its weights.

Tolerances are those stated with the golden data.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.convert import flux as table
from spatialrl.models import flux

CASES = ["io_0", "io_1"]
FLUX_DEV = {  # as published, not checked against a file
  "num_layers": 19,
  "num_single_layers": 38,
  "attention_head_dim": 128,
  "num_attention_heads": 24,
  "in_channels": 64,
  "patch_size": 1,
  "joint_attention_dim": 4096,
  "pooled_projection_dim": 768,
  "guidance_embeds": True,
}
TOTAL = 11_901_408_320


@pytest.fixture(params=CASES)
def case(request, golden, load_model):
  """(sizes, params, arrays) of each forward pass."""
  data = golden(f"models/flux/{request.param}.npz")
  return *load_model("flux", table), data


def inputs(data):
  """The arguments of Flux for a golden file."""
  rows, columns = data["img_ids"][:, 1:].max(0).astype(int) + 1
  return {
    "x": flux.unpack(data["hidden_states"], rows, columns),
    "t": data["timestep"],
    "text": data["encoder_hidden_states"],
    "pooled": data["pooled_projections"],
    "guidance": data["guidance"],
  }


def test_every_tensor_has_its_place(case):
  sizes, params, data = case
  wanted = jax.eval_shape(
    lambda key: flux.Flux(sizes).init(key, **inputs(data)), jax.random.key(0)
  )["params"]
  ours, wanted = (jax.tree.map(np.shape, tree) for tree in (params, wanted))
  assert ours == wanted


def test_packing(golden):
  data = golden("models/flux/packing.npz")
  latent = data["latent"].transpose(0, 2, 3, 1)
  np.testing.assert_array_equal(flux.pack(latent), data["packed"])
  rows, columns = latent.shape[1] // 2, latent.shape[2] // 2
  np.testing.assert_array_equal(
    flux.unpack(data["packed"], rows, columns), latent
  )
  # With two channels an axis, the angles are the ids themselves.
  cos, sin = flux.rotary(rows, columns, (2, 2, 2))
  np.testing.assert_allclose(cos[:, ::2], np.cos(data["img_ids"]), atol=1e-6)
  np.testing.assert_allclose(sin[:, ::2], np.sin(data["img_ids"]), atol=1e-6)


def test_states_given_the_conditioning_vector(
  case, given_vector, assert_states
):
  sizes, params, data = case
  with given_vector(data["dbg_temb"]):
    ours = table.outputs(sizes, params, data)
  assert_states(ours, data, atol=1e-5)


def test_states_end_to_end(golden, load_model, assert_states):
  sizes, params = load_model("flux", table)
  data = golden("models/flux/io_0.npz")
  assert_states(table.outputs(sizes, params, data), data, atol=2e-4)


@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16])
def test_bfloat16_stays_near(stored, golden, load_model, in_bfloat16):
  sizes, params = load_model("flux", table)
  data = golden("models/flux/io_1.npz")
  network = flux.Flux(dataclasses.replace(sizes, dtype="bfloat16"))
  params = jax.tree.map(lambda w: w.astype(stored), params)
  out = in_bfloat16(network, params, inputs(data))
  error = flux.pack(out) - data["sample"]
  spread = data["sample"].std()
  assert 1e-4 * spread < error.std() < 0.03 * spread


def test_gradients_are_those_of_torch(
  golden, load_model, model_folder, as_tree, assert_gradients
):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  sizes, params = load_model("flux", table)
  data = golden("models/flux/io_0.npz")
  # At 3.5 the angles are so large that float32 sinusoids differ by 2e-4.
  data["guidance"] = np.float32([0.1, 0.2])
  weight = np.random.default_rng(0).normal(size=data["sample"].shape)
  weight = weight.astype(np.float32)
  network = diffusers.FluxTransformer2DModel.from_pretrained(
    model_folder("flux")
  )
  names = (
    "hidden_states",
    "encoder_hidden_states",
    "pooled_projections",
    "timestep",
    "img_ids",
    "txt_ids",
    "guidance",
  )
  out = network(*(torch.tensor(data[name]) for name in names)).sample
  (out * torch.tensor(weight)).sum().backward()
  theirs = as_tree(
    table.table(sizes),
    {name: p.grad.numpy() for name, p in network.named_parameters()},
  )

  @jax.jit
  @jax.grad
  def gradient(params):
    out = flux.Flux(sizes).apply({"params": params}, **inputs(data))
    return jnp.sum(flux.pack(out) * weight)

  assert_gradients(gradient(params), theirs)


def test_published_size(count):
  sizes = table.read_config(FLUX_DEV)
  assert sizes == flux.FluxConfig()
  entries = table.table(sizes)
  assert sum(int(np.prod(e.read_shape)) for e in entries) == TOTAL
  one = jnp.ones(1)
  states = {"text": jnp.zeros((1, 8, 4096)), "pooled": jnp.zeros((1, 768))}
  x = jnp.zeros((1, 128, 128, 16))
  assert count(flux.Flux(sizes), x=x, t=one, guidance=one, **states) == TOTAL


def test_published_size_in_diffusers():
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  with torch.device("meta"):
    network = diffusers.FluxTransformer2DModel(**FLUX_DEV)
  assert sum(p.numel() for p in network.parameters()) == TOTAL
  theirs = {name: tuple(p.shape) for name, p in network.named_parameters()}
  entries = table.table(table.read_config(FLUX_DEV))
  assert {entry.name: entry.shape for entry in entries} == theirs
