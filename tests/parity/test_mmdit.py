"""The MMDiT against SD3Transformer2DModel of diffusers, with its weights.

Tolerances are those stated with the golden data.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialrl.convert import sd3
from spatialrl.models import mmdit

CASES = ["sd3_plain/io_0", "sd3_dual/io_0", "sd3_dual/io_1"]
SD3_MEDIUM = {  # as published, not checked against a file
  "num_layers": 24,
  "num_attention_heads": 24,
  "attention_head_dim": 64,
  "in_channels": 16,
  "out_channels": 16,
  "patch_size": 2,
  "sample_size": 128,
  "joint_attention_dim": 4096,
  "caption_projection_dim": 1536,
  "pooled_projection_dim": 2048,
  "pos_embed_max_size": 192,
}
SD35_MEDIUM = SD3_MEDIUM | {
  "pos_embed_max_size": 384,
  "qk_norm": "rms_norm",
  "dual_attention_layers": list(range(13)),
}
SD35_LARGE = SD3_MEDIUM | {
  "num_layers": 38,
  "num_attention_heads": 38,
  "caption_projection_dim": 2432,
  "qk_norm": "rms_norm",
}
PUBLISHED = [
  (SD3_MEDIUM, 2_028_328_000),
  (SD35_MEDIUM, 2_243_171_520),
  (SD35_LARGE, 8_056_627_520),
]


@pytest.fixture(params=CASES)
def case(request, golden, load_model):
  """(sizes, params, arrays) of each forward pass."""
  folder, name = request.param.split("/")
  return *load_model(folder, sd3), golden(f"models/{folder}/{name}.npz")


def inputs(data):
  """The arguments of MMDiT for a golden file."""
  return {
    "x": data["hidden_states"].transpose(0, 2, 3, 1),
    "t": data["timestep"] / np.float32(1000),
    "text": data["encoder_hidden_states"],
    "pooled": data["pooled_projections"],
  }


def test_every_tensor_has_its_place(case):
  sizes, params, data = case
  wanted = jax.eval_shape(
    mmdit.MMDiT(sizes).init, jax.random.key(0), *inputs(data).values()
  )["params"]
  ours, wanted = (jax.tree.map(np.shape, tree) for tree in (params, wanted))
  assert ours == wanted


@pytest.mark.parametrize("folder", ["sd3_plain", "sd3_dual"])
def test_positions_are_the_centre_of_the_table(
  folder, load_model, model_folder
):
  sizes, _ = load_model(folder, sd3)
  path = model_folder(folder, "diffusion_pytorch_model.safetensors")
  (table,) = load_file(path)["pos_embed.pos_embed"]
  side, base = sizes.position_table, sizes.position_base
  ours = mmdit.position_features(side, side, sizes.width, table=side, base=base)
  np.testing.assert_allclose(ours, table, atol=1e-6)
  for rows, columns in ((5, 6), (6, 5)):  # odd and even remainders
    ours = mmdit.position_features(
      rows, columns, sizes.width, table=side, base=base
    )
    top, left = (side - rows) // 2, (side - columns) // 2
    crop = table.reshape(side, side, -1)
    crop = crop[top : top + rows, left : left + columns]
    np.testing.assert_allclose(ours.reshape(crop.shape), crop, atol=1e-6)


def test_states_given_the_conditioning_vector(
  case, given_vector, assert_states
):
  sizes, params, data = case
  with given_vector(data["dbg_temb"]):
    ours = sd3.outputs(sizes, params, data)
  assert_states(ours, data, atol=1e-5)


def test_states_end_to_end(golden, load_model, assert_states):
  sizes, params = load_model("sd3_plain", sd3)
  data = golden("models/sd3_plain/io_0.npz")
  assert_states(sd3.outputs(sizes, params, data), data, atol=1e-4)


def test_bfloat16_stays_near(golden, load_model, in_bfloat16):
  sizes, params = load_model("sd3_plain", sd3)
  data = golden("models/sd3_plain/io_0.npz")
  network = mmdit.MMDiT(dataclasses.replace(sizes, dtype="bfloat16"))
  out = in_bfloat16(network, params, inputs(data))
  error = out.transpose(0, 3, 1, 2) - data["sample"]
  spread = data["sample"].std()
  assert 1e-4 * spread < error.std() < 0.02 * spread


def test_gradients_are_those_of_torch(
  golden, load_model, model_folder, as_tree, assert_gradients
):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  sizes, params = load_model("sd3_dual", sd3)
  data = golden("models/sd3_dual/io_0.npz")
  weight = np.random.default_rng(0).normal(size=data["sample"].shape)
  weight = weight.astype(np.float32)
  network = diffusers.SD3Transformer2DModel.from_pretrained(
    model_folder("sd3_dual")
  )
  names = (
    "hidden_states",
    "encoder_hidden_states",
    "pooled_projections",
    "timestep",
  )
  out = network(*(torch.tensor(data[name]) for name in names)).sample
  (out * torch.tensor(weight)).sum().backward()
  theirs = as_tree(
    sd3.table(sizes),
    {name: p.grad.numpy() for name, p in network.named_parameters()},
  )

  @jax.jit
  @jax.grad
  def gradient(params):
    out = mmdit.MMDiT(sizes).apply({"params": params}, **inputs(data))
    return jnp.sum(out * weight.transpose(0, 2, 3, 1))

  assert_gradients(gradient(params), theirs)


@pytest.mark.parametrize(("fields", "total"), PUBLISHED)
def test_published_sizes(fields, total, count):
  sizes = sd3.read_config(fields)
  entries = sd3.table(sizes)
  assert sum(int(np.prod(e.read_shape)) for e in entries) == total
  states = {"text": jnp.zeros((1, 8, 4096)), "pooled": jnp.zeros((1, 2048))}
  x, t = jnp.zeros((1, 128, 128, 16)), jnp.ones(1)
  assert count(mmdit.MMDiT(sizes), x=x, t=t, **states) == total


@pytest.mark.parametrize(("fields", "total"), PUBLISHED)
def test_published_sizes_in_diffusers(fields, total):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  with torch.device("meta"):
    network = diffusers.SD3Transformer2DModel(**fields)
  assert sum(p.numel() for p in network.parameters()) == total
  theirs = {name: tuple(p.shape) for name, p in network.named_parameters()}
  entries = sd3.table(sd3.read_config(fields))
  assert {entry.name: entry.shape for entry in entries} == theirs


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'"),
    ({"out_channels": 32}, "out_channels is 32; allowed are None and 16"),
    ({"caption_projection_dim": 64}, "caption_projection_dim is 64.* 1536"),
    ({"dual_attention_layers": [0, 2]}, r"layers is \[0, 2\].* \[0, 1\]"),
  ],
)
def test_a_choice_that_we_do_not_have_is_refused(change, words):
  with pytest.raises(ValueError, match=words):
    sd3.read_config(SD3_MEDIUM | change)


def test_text_of_another_width_is_refused(golden, load_model):
  sizes, params = load_model("sd3_plain", sd3)
  given = inputs(golden("models/sd3_plain/io_0.npz"))
  given["text"] = given["text"][..., :-1]
  with pytest.raises(ValueError, match="text_width is 20; .* have 19"):
    mmdit.MMDiT(sizes).apply({"params": params}, **given)
