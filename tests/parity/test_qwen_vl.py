"""Qwen2.5-VL against transformers, with its weights: states and gradients."""

import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spatialrl.convert import qwen_vl as convert
from spatialrl.convert.table import to_ours, to_theirs
from spatialrl.data.qwen_inputs import QwenInputs
from spatialrl.models.qwen_vl import QwenVL, QwenVLConfig
from tests.parity import _folders

FOLDER = _folders.GOLDEN / "qwen2_5_vl"
CASES = ["io_single", "io_batch_leftpad", "io_batch_rightpad"]
INPUTS = {"input_ids", "attention_mask", "image_grid_thw", "pixel_values"}
GIVEN = INPUTS | {"image_0_u8", "image_1_u8"}
# From config.json of Qwen/Qwen2.5-VL-7B-Instruct.
PUBLISHED = {
  "hidden_act": "silu",
  "hidden_size": 3584,
  "image_token_id": 151655,
  "intermediate_size": 18944,
  "max_window_layers": 28,
  "num_attention_heads": 28,
  "num_hidden_layers": 28,
  "num_key_value_heads": 4,
  "rms_norm_eps": 1e-6,
  "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
  "rope_theta": 1000000.0,
  "sliding_window": 32768,
  "tie_word_embeddings": False,
  "use_sliding_window": False,
  "vision_config": {
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_act": "silu",
    "hidden_size": 1280,
    "in_chans": 3,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
  },
  "vocab_size": 152064,
}
PUBLISHED_COUNT = 8_292_166_656


@functools.cache
def model():
  """(sizes, params) of the golden folder."""
  return _folders.load(convert, "qwen2_5_vl")


def fields(name="config.json"):
  return json.loads((FOLDER / name).read_text())


def inputs(data):
  """The inputs of a check file, positions included."""
  grids = tuple((int(h), int(w)) for _, h, w in data["image_grid_thw"])
  return QwenInputs(
    np.int32(data["input_ids"]),
    data["attention_mask"] > 0,
    np.int32(data["position_ids"]),
    data["pixel_values"],
    grids,
  )


def shapes_of(sizes, data):
  tree = jax.eval_shape(QwenVL(sizes).init, jax.random.key(0), inputs(data))
  return jax.tree.map(np.shape, tree["params"])


@pytest.mark.parametrize("name", CASES)
def test_every_output_of_the_folder(name, golden):
  data = golden(f"models/qwen2_5_vl/{name}.npz")
  ours = convert.outputs(*model(), {key: data[key] for key in INPUTS})
  assert set(ours) == set(data) - GIVEN
  for key, value in ours.items():
    if np.issubdtype(data[key].dtype, np.integer):
      np.testing.assert_array_equal(value, data[key], err_msg=key)
    else:
      scale = np.abs(data[key]).max()
      np.testing.assert_allclose(
        value / scale, data[key] / scale, rtol=0, atol=1e-5, err_msg=key
      )


def test_the_table_is_the_file_and_the_network(golden):
  sizes, params = model()
  tensors = load_file(FOLDER / "model.safetensors")
  entries = {entry.name: entry for entry in convert.table(sizes)}
  assert {name: entry.shape for name, entry in entries.items()} == {
    name: tensor.shape for name, tensor in tensors.items()
  }
  for name, tensor in tensors.items():
    back = to_theirs(entries[name], to_ours(entries[name], tensor))
    np.testing.assert_array_equal(back, tensor, err_msg=name)
  data = golden("models/qwen2_5_vl/io_single.npz")
  assert jax.tree.map(np.shape, params) == shapes_of(sizes, data)


def test_tied_logits_are_read_with_the_table(golden):
  sizes, params = model()
  tied = convert.read_config(fields() | {"tie_word_embeddings": True})
  assert tied == dataclasses.replace(sizes, tied=True)
  names = {entry.name for entry in convert.table(tied)}
  assert names == {e.name for e in convert.table(sizes)} - {"lm_head.weight"}
  data = golden("models/qwen2_5_vl/io_single.npz")
  without = {key: params[key] for key in params if key != "lm_head"}
  assert shapes_of(tied, data) == jax.tree.map(np.shape, without)
  ours = convert.outputs(tied, without, {key: data[key] for key in INPUTS})
  expected = data["last_hidden_state"] @ params["words"].T
  np.testing.assert_allclose(ours["logits"], expected, atol=5e-5)


def test_both_layouts_of_the_config_are_the_same_model():
  assert convert.read_config(fields("config_hub_style.json")) == model()[0]


def test_names_of_transformers_5_are_read_as_well(tmp_path):
  newer = {"visual": "model.visual", "model": "model.language_model"}
  tensors = {}
  for name, tensor in load_file(FOLDER / "model.safetensors").items():
    first, _, rest = name.partition(".")
    tensors[f"{newer.get(first, first)}.{rest}"] = tensor
  save_file(tensors, tmp_path / "model.safetensors")
  shutil.copy(FOLDER / "config.json", tmp_path)
  sizes, params = _folders.load(convert, tmp_path)
  assert sizes == model()[0]
  jax.tree.map(np.testing.assert_array_equal, params, model()[1])


@pytest.mark.parametrize(
  "path,value,message",
  [
    (("hidden_act",), "gelu", "hidden_act is 'gelu'; allowed is 'silu'"),
    (("use_sliding_window",), True, "use_sliding_window is True"),
    (("vision_config", "in_chans"), 1, "in_chans is 1; allowed is 3"),
    (("rope_scaling", "type"), "yarn", "rope_type is 'yarn'; allowed"),
    (("vision_config", "window_size"), 100, "window is 100; .* of 28"),
    (("vision_config", "fullatt_block_indexes"), [32], "full_blocks is .32"),
    (("vision_config", "num_heads"), 3, "heads is 3; .* divide .* 1280"),
    (("vision_config", "out_hidden_size"), 8, "vision.out is 8; .* 3584"),
    (("num_attention_heads",), 24, "heads is 24; .* divide width 3584"),
    (("num_key_value_heads",), 3, "kv_heads is 3; .* divide heads 28"),
    (("rope_scaling", "mrope_section"), [16, 24], "sections is .* 128"),
  ],
)
def test_another_model_is_refused(path, value, message):
  other = json.loads(json.dumps(PUBLISHED))
  *parents, last = path
  node = functools.reduce(dict.__getitem__, parents, other)
  node[last] = value
  with pytest.raises(ValueError, match=message):
    convert.read_config(other)


def test_published_size(golden):
  """Qwen2.5-VL-7B, 8.29 B; torch counts the same, see below."""
  sizes = convert.read_config(PUBLISHED)
  assert sizes == QwenVLConfig()
  data = golden("models/qwen2_5_vl/io_single.npz")
  tree = shapes_of(sizes, data)
  shapes = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, tuple))
  assert sum(map(math.prod, shapes)) == PUBLISHED_COUNT
  table = sum(math.prod(entry.shape) for entry in convert.table(sizes))
  assert table == PUBLISHED_COUNT


def test_patches_that_do_not_fit_the_grids_are_refused(golden):
  sizes, params = model()
  good = inputs(golden("models/qwen2_5_vl/io_single.npz"))
  network = QwenVL(sizes)
  for grid, message in (
    ((6, 6), "patches has 48 rows; the grids .* 36"),
    ((8, 8), "patches has 48 rows; the grids .* 64"),
    ((16, 3), "grid is .16, 3.; allowed are multiples of merge 2"),
  ):
    bad = dataclasses.replace(good, grids=(grid,))
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(network.apply, {"params": params}, bad)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_half_precision_is_close(stored, golden):
  sizes, params = model()
  half = dataclasses.replace(sizes, dtype="bfloat16")
  params = jax.tree.map(lambda w: jnp.asarray(w, stored), params)
  data = golden("models/qwen2_5_vl/io_single.npz")

  def run(params, inputs):
    return QwenVL(half).apply(
      {"params": params},
      inputs,
      capture_intermediates=lambda module, _: module.name
      in (None, "layers", "up"),
    )

  logits, captured = jax.jit(run)(params, inputs(data))
  seen = captured["intermediates"]
  layers = seen.pop("layers")
  assert {x.dtype for x in jax.tree.leaves(layers)} == {jnp.dtype("bfloat16")}
  assert {"see", "embed", "states"} <= set(seen)
  assert {x.dtype for x in jax.tree.leaves(seen)} == {jnp.dtype("float32")}
  error = np.abs(logits - data["logits"])
  assert 1e-3 < error.mean() < 0.03 * np.abs(data["logits"]).max()


def test_torch_counts_the_same():
  torch = pytest.importorskip("torch")
  import transformers

  config = transformers.Qwen2_5_VLConfig(**PUBLISHED)
  with torch.device("meta"):
    theirs = transformers.Qwen2_5_VLForConditionalGeneration(config)
  state = {
    convert.canonical(name): tuple(value.shape)
    for name, value in theirs.state_dict().items()
  }
  entries = convert.table(convert.read_config(PUBLISHED))
  assert state == {entry.name: entry.shape for entry in entries}
  assert sum(p.numel() for p in theirs.parameters()) == PUBLISHED_COUNT


def test_gradients_of_every_weight_and_pixel(golden):
  torch = pytest.importorskip("torch")
  import transformers

  sizes, params = model()
  data = golden("models/qwen2_5_vl/io_batch_leftpad.npz")
  theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
    FOLDER, attn_implementation="eager"
  )
  weight = np.random.default_rng(0).normal(size=data["logits"].shape)
  weight = np.float32(weight * data["attention_mask"][..., None])
  given = {key: torch.from_numpy(data[key]) for key in INPUTS}
  given["position_ids"] = torch.from_numpy(data["position_ids"])
  given["pixel_values"].requires_grad_()
  logits = theirs(**given, use_cache=False).logits
  (logits * torch.from_numpy(weight)).sum().backward()

  def loss(params, patches):
    given = dataclasses.replace(inputs(data), patches=patches)
    return jnp.sum(QwenVL(sizes).apply({"params": params}, given) * weight)

  gradient, pixels = jax.jit(jax.grad(loss, (0, 1)))(
    params, data["pixel_values"]
  )
  close(pixels, given["pixel_values"].grad.numpy(), "pixel_values")
  named = {convert.canonical(k): p for k, p in theirs.named_parameters()}
  for entry in convert.table(sizes):
    ours = gradient
    for part in entry.path.split("/"):
      ours = ours[part]
    ours = ours if entry.layer is None else ours[entry.layer]
    close(ours, to_ours(entry, named[entry.name].grad.numpy()), entry.name)


def close(ours, theirs, name):
  """Differences below 1e-4 of the largest value."""
  scale = np.abs(theirs).max()
  assert scale > 0, name
  np.testing.assert_allclose(
    ours / scale, theirs / scale, rtol=0, atol=1e-4, err_msg=name
  )
