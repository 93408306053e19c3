"""LoRA folders read, written and merged, against the formula on tensors."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from spatialrl.convert import adapters, folder, lora, stream
from spatialrl.models.lora import LoRAConfig

from .conftest import outputs, reference

IDS = np.array([1, 4, 2])


@pytest.fixture
def whole(write, tensors):
  return folder.open_model(write(tensors))


@pytest.fixture
def tree(rng):
  """Adapters of the toy: two stacks that share a tensor, one, and the head."""
  shapes = {"up": (4, 8), "left": (3, 4), "right": (5, 4)}
  layers = {
    name: {
      "a": np.float32(rng.standard_normal((3, width, 2))),
      "b": np.float32(rng.standard_normal((3, 2, out))),
    }
    for name, (width, out) in shapes.items()
  }
  head = {
    "a": np.float32(rng.standard_normal((4, 2))),
    "b": np.float32(rng.standard_normal((2, 5))),
  }
  return {"layers": layers, "head": head}


CONFIG = LoRAConfig(rank=2, alpha=3.0)


def logits(params):
  return outputs({"layers": 3}, params, {"ids": IDS})["logits"]


def adapted(tensors, pairs):
  """The folder's tensors with its adapters added."""
  return tensors | {
    f"{name}.weight": tensors[f"{name}.weight"] + pair.delta()
    for name, pair in pairs.items()
  }


@pytest.mark.parametrize("layout", ["peft", "diffusers"])
def test_round_trip(whole, tensors, tree, tmp_path, layout, monkeypatch):
  monkeypatch.setattr(lora, "_PIPELINES", ("toy",))
  pairs = adapters.from_tree(CONFIG, tree, whole)
  lora.write(tmp_path / "lora", layout, pairs, whole)
  assert folder.recognise(tmp_path / "lora").layout == layout
  back = lora.read(tmp_path / "lora", whole)
  assert back.keys() == pairs.keys() and len(pairs) == 7
  _, params = stream.load(whole.model.path)
  wanted = logits(adapters.merge(params, CONFIG, tree))
  np.testing.assert_allclose(
    reference(adapted(tensors, back), IDS), wanted, rtol=1e-5, atol=1e-4
  )
  config, again = adapters.to_tree(back, whole)
  assert set(config.targets) == {
    r"layers/up", r"layers/left", r"layers/right", r"head"
  }
  np.testing.assert_allclose(
    logits(adapters.merge(params, config, again)), wanted, rtol=1e-5, atol=1e-4
  )


def test_a_shared_tensor_has_the_sum_of_the_ranks(whole, tree, tmp_path):
  pairs = adapters.from_tree(CONFIG, tree, whole)
  assert pairs["layers.0.down"].a.shape == (4, 8)
  lora.write(tmp_path / "lora", "peft", pairs, whole)
  settings = json.loads((tmp_path / "lora/adapter_config.json").read_text())
  assert (settings["r"], settings["lora_alpha"]) == (2, 3.0)
  key = r"^layers\.2\.down"
  assert settings["rank_pattern"][key] == 4
  assert settings["alpha_pattern"][key] == 6.0
  # peft itself takes a part of the scale from each: 6 / 4 as well as 3 / 2.
  assert {p.scale for p in lora.read(tmp_path / "lora", whole).values()} == {
    1.5
  }


def test_equal_ranks_come_back_as_they_were(whole, tree, tmp_path):
  tree = {"layers": {"up": tree["layers"]["up"]}}
  pairs = adapters.from_tree(CONFIG, tree, whole)
  lora.write(tmp_path / "lora", "peft", pairs, whole)
  config, back = adapters.to_tree(lora.read(tmp_path / "lora", whole), whole)
  assert (config.rank, config.alpha) == (2, 3.0)
  jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_layers_without_an_adapter_get_zeros(whole, tree):
  pairs = adapters.from_tree(CONFIG, tree, whole)
  _, back = adapters.to_tree({"layers.1.up": pairs["layers.1.up"]}, whole)
  up = back["layers"]["up"]
  assert back.keys() == {"layers"} and up["a"].shape == (3, 4, 2)
  assert not up["a"][[0, 2]].any() and not up["b"][[0, 2]].any()
  np.testing.assert_array_equal(up["a"][1], tree["layers"]["up"]["a"][1])


def test_alpha_is_in_the_metadata(whole, tree, tmp_path, monkeypatch):
  monkeypatch.setattr(lora, "_PIPELINES", ("toy",))
  pairs = adapters.from_tree(CONFIG, {"head": tree["head"]}, whole)
  lora.write(tmp_path, "diffusers", pairs, whole)
  file = tmp_path / "pytorch_lora_weights.safetensors"
  with safe_open(file, "np") as opened:
    settings = json.loads(opened.metadata()["lora_adapter_metadata"])
  assert settings["transformer.lora_alpha"] == 3.0
  assert settings["transformer.target_modules"] == ["head"]
  save_file(load_file(file), file)  # without it diffusers takes the rank
  assert lora.read(tmp_path, whole)["head"].scale == 1.0


def test_a_lora_is_not_written_over(whole, tree, peft):
  pairs = adapters.from_tree(CONFIG, tree, whole)
  with pytest.raises(ValueError, match="holds a LoRA already"):
    lora.write(peft, "peft", pairs, whole)


def test_diffusers_has_no_place_for_others(whole, tmp_path):
  with pytest.raises(ValueError, match="the base is Toy; it reads adapters of"):
    lora.write(tmp_path, "diffusers", {}, whole)


@pytest.fixture
def peft(whole, tree, tmp_path):
  pairs = adapters.from_tree(CONFIG, tree, whole)
  lora.write(tmp_path / "peft", "peft", pairs, whole)
  return tmp_path / "peft"


@pytest.mark.parametrize(
  ("name", "value"),
  [("use_dora", True), ("use_rslora", True), ("modules_to_save", ["head"])],
)
def test_settings_that_we_do_not_have(whole, peft, name, value):
  file = peft / "adapter_config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
  with pytest.raises(ValueError, match=f"has {name} .*; allowed is"):
    lora.read(peft, whole)


@pytest.mark.parametrize(
  "name", ["head.alpha", "base_model.model.words.lora_A.weight"]
)
def test_an_unknown_tensor(whole, peft, name):
  file = peft / "adapter_model.safetensors"
  save_file({**load_file(file), name: np.zeros((2, 6))}, file)
  with pytest.raises(ValueError, match=f"'{name}' .* is no A or B of a dense"):
    lora.read(peft, whole)


def test_half_of_a_pair_and_a_wrong_width(whole, peft):
  file, name = peft / "adapter_model.safetensors", "base_model.model.head.lora_"
  tensors = load_file(file)
  kept = {k: x for k, x in tensors.items() if k != f"{name}B.weight"}
  save_file(kept, file)
  with pytest.raises(ValueError, match="for 'head'; it needs A of"):
    lora.read(peft, whole)
  save_file({**tensors, f"{name}A.weight": np.zeros((2, 3))}, file)
  with pytest.raises(ValueError, match="for 'head'; it needs A of"):
    lora.read(peft, whole)


def test_a_missing_config_and_no_lora_at_all(whole, peft):
  (peft / "adapter_config.json").unlink()
  with pytest.raises(ValueError, match="adapter_config.json is missing"):
    lora.read(peft, whole)
  with pytest.raises(ValueError, match="is no LoRA folder"):
    lora.read(whole.model.path, whole)
  with pytest.raises(ValueError, match="is a LoRA; a folder of whole weights"):
    folder.open_model(peft)


def test_adapters_of_another_network(whole, tree):
  with pytest.raises(ValueError, match="'blocks/left/a' is of no dense"):
    adapters.from_tree(CONFIG, {"blocks": tree["layers"]}, whole)


@pytest.mark.parametrize("limit", [10**9, 300])
def test_merged_folder(whole, tensors, peft, tmp_path, limit):
  out = tmp_path / "merged"
  adapters.merge_folder(whole.model.path, peft, out, limit=limit)
  merged = folder.open_model(out)
  files = {tensor.file for tensor in merged.tensors.values()}
  assert (len(files) > 3) == (limit == 300)
  wanted = adapted(tensors, lora.read(peft, whole))
  found = {k: np.array(t.read()) for k, t in merged.tensors.items()}
  assert found.keys() == wanted.keys() - {"words.ids"}
  for name, value in found.items():
    np.testing.assert_allclose(value, wanted[name], rtol=1e-6)
  stored = {}
  for file in out.glob("*.safetensors"):
    stored |= load_file(file)  # the safetensors package reads them as well
  assert stored.keys() == wanted.keys()
  np.testing.assert_array_equal(stored["words.ids"], tensors["words.ids"])
  with pytest.raises(ValueError, match="holds files already"):
    adapters.merge_folder(whole.model.path, peft, out, limit=limit)


def test_a_merge_keeps_the_dtype(write, tensors, peft, tmp_path):
  base = write(tensors, name="half", dtype=np.float16)
  out = tmp_path / "merged"
  adapters.merge_folder(base, peft, out, limit=10**9)
  codes = {t.code for t in folder.open_model(out).tensors.values()}
  assert codes == {"F16"}
