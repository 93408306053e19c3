"""Adapters of the published layouts, and ours as diffusers loads them."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatialrl.convert import adapters, check, folder, lora, stream
from spatialrl.models.lora import LoRAConfig, adapted
from spatialrl.models.mmdit import MMDiT

pytest.importorskip("spatialrl.convert.sd3")
pytest.importorskip("spatialrl.convert.flux")

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "models"
CONFIG = LoRAConfig(rank=3, alpha=6.0)


def arrays(name):
  with np.load(GOLDEN / name) as data:
    return dict(data)


@functools.cache
def base(name):
  return folder.open_model(GOLDEN / name)


@pytest.mark.parametrize("name", ["sd3_dual", "flux"])
def test_saved_adapters(name):
  wanted = arrays(f"{name}_lora/io_0.npz")
  inputs = arrays(f"{name}/io_0.npz") | wanted
  found = check.lora_outputs(base(name), GOLDEN / f"{name}_lora", inputs)
  differences = check.compare(found, wanted)
  assert {d.name for d in differences} == wanted.keys()
  for difference in differences:
    assert difference.largest < 3e-4, difference  # as stated with the data
    assert difference.ratio < 1e-4, difference


@pytest.mark.parametrize("name", ["sd3_dual", "flux"])
def test_both_layouts_hold_the_same(name):
  (config, tree), (other_config, other) = (
    adapters.to_tree(lora.read(path, base(name)), base(name))
    for path in (GOLDEN / f"{name}_lora", GOLDEN / f"{name}_lora" / "peft")
  )
  assert config == other_config and (config.rank, config.alpha) == (4, 8)
  jax.tree.map(np.testing.assert_array_equal, tree, other)


def sd3_inputs(data):
  """x, t, text and pooled as our network takes them."""
  return (
    data["hidden_states"].transpose(0, 2, 3, 1),
    data["timestep"] / np.float32(1000),
    data["encoder_hidden_states"],
    data["pooled_projections"],
  )


@functools.cache
def trained():
  """(inputs, velocity, adapters) of the tiny SD3 after one AdamW step.

  B starts at random, too, or the first step would move nothing but it.
  """
  network = MMDiT(base("sd3_dual").sizes)
  params = stream.load_whole(base("sd3_dual"))
  data = arrays("sd3_dual/io_0.npz")
  inputs = sd3_inputs(data)
  with adapted(CONFIG):
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["lora"]
  rng = np.random.default_rng(0)
  start = jax.tree.map(
    lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes
  )

  def velocity(tree):
    with adapted(CONFIG):
      return network.apply({"params": params, "lora": tree}, *inputs)

  @jax.jit
  def step(tree):
    gradient = jax.grad(lambda x: jnp.mean(velocity(x) ** 2))(tree)
    optimizer = optax.adamw(1e-2)
    update, _ = optimizer.update(gradient, optimizer.init(tree), tree)
    tree = optax.apply_updates(tree, update)
    return tree, velocity(tree)

  tree, found = step(start)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, tree, start)
  del moved["last_block"]["text_q"]  # No output depends on it.
  assert all(jax.tree.leaves(moved))
  return data, np.asarray(found).transpose(0, 3, 1, 2), tree


def test_interception_and_merging_agree():
  data, velocity, tree = trained()
  whole = base("sd3_dual")
  merged = adapters.merge(stream.load_whole(whole), CONFIG, tree)
  found = whole.model.module.outputs(whole.sizes, merged, data)["sample"]
  np.testing.assert_allclose(found, velocity, atol=2e-5)


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_diffusers_loads_what_we_trained(tmp_path, layout):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  peft = pytest.importorskip("peft")
  data, velocity, tree = trained()
  whole = base("sd3_dual")
  pairs = adapters.from_tree(CONFIG, tree, whole)
  lora.write(tmp_path, layout, pairs, whole)
  network = diffusers.SD3Transformer2DModel.from_pretrained(whole.model.path)
  if layout == "diffusers":
    file = "pytorch_lora_weights.safetensors"
    network.load_lora_adapter(tmp_path, weight_name=file)
  else:
    network = peft.PeftModel.from_pretrained(network, tmp_path)
  adapter = {n for n, _ in network.named_parameters() if ".lora_A." in n}
  assert len(adapter) == len(pairs)
  names = "hidden_states encoder_hidden_states pooled_projections timestep"
  tensors = {name: torch.from_numpy(data[name]) for name in names.split()}
  with torch.no_grad():
    theirs = network.eval()(**tensors).sample.numpy()
  scale = np.abs(theirs).max()
  assert np.abs(theirs - data["sample"]).max() > 0.1 * scale
  assert np.abs(theirs - velocity).max() < 2e-5 * scale
