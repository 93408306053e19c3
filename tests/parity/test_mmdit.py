"""The MMDiT against SD3Transformer2DModel of diffusers, with its weights.

Golden latents are channel-first and patches are convolutions; ours are
channel-last and dense. Tolerances are those stated with the golden data.
"""

import functools
import json
import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialrl.models import mmdit

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "models"
CASES = ["sd3_plain/io_0", "sd3_dual/io_0", "sd3_dual/io_1"]

NETWORK = {
  "pos_embed.proj": "patch_embed",
  "context_embedder": "context_embed",
  "time_text_embed.timestep_embedder.linear_1": "time_embed/up",
  "time_text_embed.timestep_embedder.linear_2": "time_embed/down",
  "time_text_embed.text_embedder.linear_1": "pooled_embed/up",
  "time_text_embed.text_embedder.linear_2": "pooled_embed/down",
  "norm_out.linear": "norm_out",
  "proj_out": "proj_out",
}
BLOCK = {
  "norm1.linear": "image_modulation",
  "norm1_context.linear": "text_modulation",
  "attn.to_out.0": "image_out",
  "attn.to_add_out": "text_out",
  "attn2.to_out.0": "image2_out",
  "ff.net.0.proj": "image_ff/up",
  "ff.net.2": "image_ff/down",
  "ff_context.net.0.proj": "text_ff/up",
  "ff_context.net.2": "text_ff/down",
}
for _part in "qkv":
  BLOCK |= {
    f"attn.to_{_part}": f"image_{_part}",
    f"attn.add_{_part}_proj": f"text_{_part}",
    f"attn.norm_{_part}": f"image_{_part}_norm",
    f"attn.norm_added_{_part}": f"text_{_part}_norm",
    f"attn2.to_{_part}": f"image2_{_part}",
    f"attn2.norm_{_part}": f"image2_{_part}_norm",
  }


def leaf(name, tensor):
  """One tensor as a parameter: (path of the parameter, value)."""
  module, kind = name.rsplit(".", 1)
  if kind == "bias":
    return f"{module}/bias", tensor
  if module.rpartition("/")[2].endswith("_norm"):
    return f"{module}/scale", tensor
  if tensor.ndim == 4:  # a convolution over patches: [D, C, p, p]
    return f"{module}/kernel", tensor.transpose(2, 3, 1, 0).reshape(
      -1, tensor.shape[0]
    )
  return f"{module}/kernel", tensor.T


def nested(flat):
  tree = {}
  for path, value in flat.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree


def split(tensors, depth):
  """Checkpoint tensors to (network params, list of params of each block)."""
  network, blocks = {}, [{} for _ in range(depth)]
  for name, tensor in tensors.items():
    module, kind = name.rsplit(".", 1)
    if module.startswith("transformer_blocks."):
      _, index, module = module.split(".", 2)
      path, value = leaf(f"{BLOCK[module]}.{kind}", tensor)
      blocks[int(index)][path] = value
    elif name != "pos_embed.pos_embed":
      path, value = leaf(f"{NETWORK[module]}.{kind}", tensor)
      network[path] = value
  return nested(network), [nested(block) for block in blocks]


@functools.cache
def model(folder):
  """(MMDiTConfig, network params, list of block params, position table)."""
  sizes = json.loads((GOLDEN / folder / "config.json").read_text())
  config = mmdit.MMDiTConfig(
    width=sizes["num_attention_heads"] * sizes["attention_head_dim"],
    depth=sizes["num_layers"],
    heads=sizes["num_attention_heads"],
    channels=sizes["in_channels"],
    patch=sizes["patch_size"],
    dual_layers=len(sizes["dual_attention_layers"]),
    qk_norm=sizes["qk_norm"] == "rms_norm",
    position_table=sizes["pos_embed_max_size"],
    position_base=sizes["sample_size"] // sizes["patch_size"],
  )
  tensors = load_file(
    GOLDEN / folder / "diffusion_pytorch_model.safetensors"
  )
  table = tensors["pos_embed.pos_embed"][0]
  return config, *split(tensors, config.depth), table


def params(folder):
  """The tree that MMDiT takes: equal blocks stacked along axis 0."""
  config, network, blocks, _ = model(folder)
  dual, last = config.dual_layers, config.depth - 1
  tree = {**network, "last_block": blocks[last]}
  stacks = {"dual_blocks": blocks[:dual], "blocks": blocks[dual:last]}
  for name, part in stacks.items():
    if part:
      tree[name] = jax.tree.map(lambda *leaves: np.stack(leaves), *part)
  return tree


def inputs(data):
  """x, t, text, pooled as MMDiT takes them."""
  return (
    data["hidden_states"].transpose(0, 2, 3, 1),
    data["timestep"] / np.float32(1000),
    data["encoder_hidden_states"],
    data["pooled_projections"],
  )


def run(folder, data, vector=None):
  """The network's output, channel-first; `vector` replaces its embedding."""

  def given(next_function, args, kwargs, context):
    if vector is not None and context.module.name == "time_embed":
      return vector
    if vector is not None and context.module.name == "pooled_embed":
      return np.zeros_like(vector)
    return next_function(*args, **kwargs)

  @jax.jit
  def apply(tree, *args):
    with nn.intercept_methods(given):
      return mmdit.MMDiT(model(folder)[0]).apply({"params": tree}, *args)

  out = apply(params(folder), *inputs(data))
  return np.asarray(out).transpose(0, 3, 1, 2)


@pytest.fixture(params=CASES)
def case(request, golden):
  """(folder, dict of arrays) of each forward pass."""
  folder, name = request.param.split("/")
  return folder, golden(f"models/{folder}/{name}.npz")


def test_every_tensor_has_its_place(case):
  folder, data = case
  network = mmdit.MMDiT(model(folder)[0])
  wanted = jax.eval_shape(network.init, jax.random.key(0), *inputs(data))
  ours, wanted = (
    jax.tree.map(np.shape, tree) for tree in (params(folder), wanted["params"])
  )
  assert ours == wanted


@pytest.mark.parametrize("folder", ["sd3_plain", "sd3_dual"])
def test_positions_are_the_centre_of_the_table(folder):
  config, _, _, table = model(folder)
  side, base = config.position_table, config.position_base
  ours = mmdit.position_features(
    side, side, config.width, table=side, base=base
  )
  np.testing.assert_allclose(ours, table, atol=1e-6)
  for rows, columns in ((5, 6), (6, 5)):  # odd and even remainders
    ours = mmdit.position_features(
      rows, columns, config.width, table=side, base=base
    )
    top, left = (side - rows) // 2, (side - columns) // 2
    crop = table.reshape(side, side, -1)
    crop = crop[top : top + rows, left : left + columns]
    np.testing.assert_allclose(ours.reshape(crop.shape), crop, atol=1e-6)


def test_time_features(case):
  _, data = case
  ours = mmdit.time_features(data["timestep"] / np.float32(1000))
  # Angles reach 1000, where one unit in the last place is 6e-5.
  np.testing.assert_allclose(ours, data["dbg_time_proj"], atol=1e-4)


@pytest.mark.parametrize("folder", ["sd3_plain", "sd3_dual"])
def test_each_block_given_what_entered_it(folder, golden):
  data = golden(f"models/{folder}/io_0.npz")
  config, _, blocks, _ = model(folder)
  vector = jax.nn.silu(data["dbg_temb"])
  streams = data["dbg_patch_embed"], data["dbg_context"]
  for i, weights in enumerate(blocks):
    last = i == config.depth - 1
    block = mmdit.JointBlock(
      config, dual=i < config.dual_layers, text_ends=last
    )
    (image, text), _ = jax.jit(block.apply)(
      {"params": weights}, streams, vector, None
    )
    np.testing.assert_allclose(image, data[f"dbg_block{i}_image"], atol=1e-5)
    if not last:
      streams = data[f"dbg_block{i}_image"], data[f"dbg_block{i}_text"]
      np.testing.assert_allclose(text, streams[1], atol=1e-5)


def test_velocity_given_the_conditioning_vector(case):
  folder, data = case
  ours = run(folder, data, data["dbg_temb"])
  np.testing.assert_allclose(ours, data["sample"], atol=1e-5)


def test_velocity_end_to_end(case):
  folder, data = case
  np.testing.assert_allclose(run(folder, data), data["sample"], atol=1e-4)
