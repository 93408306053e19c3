"""What folders are taken for, and what is said of those that are broken."""

import json
import pathlib

import numpy as np
import pytest

from spatialrl.convert import clip, folder, shards
from spatialrl.convert.folder import Adapter, Model, Pipeline

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "models"


@pytest.mark.parametrize(
  ("name", "class_name", "kind"),
  [
    ("vae", "AutoencoderKL", "vae"),
    ("sd3_dual", "SD3Transformer2DModel", "sd3"),
    ("t5_sharded", "T5EncoderModel", "t5"),
  ],
)
def test_models_are_told_by_their_config(name, class_name, kind):
  found = folder.recognise(GOLDEN / name)
  assert isinstance(found, Model)
  assert (found.class_name, found.kind) == (class_name, kind)


@pytest.mark.parametrize("name", ["sd3_dual_lora", "flux_lora"])
def test_adapters_are_told_by_their_file(name):
  found = folder.recognise(GOLDEN / name)
  assert isinstance(found, Adapter) and found.layout == "diffusers"
  found = folder.recognise(GOLDEN / name / "peft")
  assert isinstance(found, Adapter) and found.layout == "peft"


def test_a_config_without_a_class_goes_by_its_type(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
  assert folder.recognise(tmp_path).kind == "qwen_vl"


@pytest.mark.parametrize("kind", ["clip_text_model", "clip"])
def test_what_goes_by_its_type_can_be_opened(tmp_path, kind):
  towers = {"text_config": {}, "vision_config": {}}
  fields = {"model_type": kind, **towers}
  (tmp_path / "config.json").write_text(json.dumps(fields))
  # Sizes and table are known; only the weights are not there.
  with pytest.raises(ValueError, match="safetensors"):
    folder.open_model(tmp_path)


def test_every_supported_clip_can_be_read():
  for name, kind in folder.SUPPORTED.items():
    if kind == "clip":
      towers = {"text_config": {}, "vision_config": {}}
      clip.table(clip.read_config({"architectures": [name], **towers}))


def test_a_pipeline_lists_its_parts(tmp_path, write, tensors):
  index = {
    "_class_name": "ToyPipeline",
    "transformer": ["diffusers", "Toy"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "safety_checker": [None, None],
    "is_distilled": True,
  }
  write(tensors, name="transformer")
  (tmp_path / "model_index.json").write_text(json.dumps(index))
  found = folder.recognise(tmp_path)
  assert found == Pipeline(
    tmp_path, "ToyPipeline", ("transformer",), ("scheduler",)
  )
  with pytest.raises(ValueError, match="is a whole ToyPipeline; give one of"):
    folder.open_model(tmp_path)


@pytest.mark.parametrize("files", [1, 3])
def test_a_whole_folder_has_every_entry(write, tensors, files):
  whole = folder.open_model(write(tensors, files=files), "toy")
  assert set(whole.tensors) == set(tensors) - {"words.ids"}
  for name, tensor in whole.tensors.items():
    np.testing.assert_array_equal(tensor.read(), tensors[name])


def test_other_spellings_are_read(write, tensors):
  spelt = {f"model.{name}": value for name, value in tensors.items()}
  whole = folder.open_model(write(spelt))
  assert set(whole.tensors) == set(tensors) - {"words.ids"}


def test_a_folder_of_another_model(write, tensors):
  with pytest.raises(ValueError, match="holds Toy; sd3 is needed"):
    folder.open_model(write(tensors), "sd3")


def test_a_class_that_is_not_supported(tmp_path):
  (tmp_path / "config.json").write_text('{"_class_name": "UNet"}')
  with pytest.raises(ValueError, match="holds UNet; allowed are"):
    folder.recognise(tmp_path)


def test_what_is_no_folder_of_weights(tmp_path):
  with pytest.raises(ValueError, match="is not a folder"):
    folder.recognise(tmp_path / "absent")
  with pytest.raises(ValueError, match="it is no folder of a model"):
    folder.recognise(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match=r"config\.json is not JSON"):
    folder.recognise(tmp_path)
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(ValueError, match=r"config\.json is a list, not an obj"):
    folder.recognise(tmp_path)


def test_a_folder_without_weights_or_with_two(write, tensors):
  path = write(tensors)
  (path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
  with pytest.raises(ValueError, match="must hold the weights once"):
    folder.open_model(path)
  for file in path.glob("*.safetensors"):
    file.unlink()
  with pytest.raises(ValueError, match="it holds none of them"):
    folder.open_model(path)


def test_a_field_that_is_missing(write, tensors):
  path = write(tensors)
  (path / "config.json").write_text('{"_class_name": "Toy"}')
  with pytest.raises(ValueError, match="has no field 'layers'"):
    folder.open_model(path)


def test_a_missing_shard(write, tensors):
  path = write(tensors, files=2)
  (path / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(ValueError, match="model-00002-of-00002.* is missing"):
    folder.open_model(path)


def test_a_tensor_that_the_index_places_elsewhere(write, tensors):
  path = write(tensors, files=2)
  index = path / "model.safetensors.index.json"
  places = json.loads(index.read_text())
  places["weight_map"]["head.weight"] = "model-00001-of-00002.safetensors"
  places["weight_map"]["temperature"] = "model-00001-of-00002.safetensors"
  index.write_text(json.dumps(places))
  with pytest.raises(ValueError, match="is missing from .*model-00001"):
    folder.open_model(path)


@pytest.mark.parametrize("left", [-1, 100, 4, 0])
def test_a_shard_that_is_half_there(write, tensors, left):
  path = write(tensors, files=2)
  shard = path / "model-00001-of-00002.safetensors"
  shard.write_bytes(shard.read_bytes()[:left])
  with pytest.raises(ValueError, match="model-00001-of-00002.* is cut short"):
    folder.open_model(path)


def test_a_file_that_is_a_pointer_to_one(write, tensors):
  file = write(tensors) / "model.safetensors"
  file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
  with pytest.raises(ValueError, match="or no safetensors file"):
    shards.read_header(file)


def test_an_unknown_tensor(write, tensors):
  tensors["layers.0.gate"] = tensors["layers.1.gate"] = np.zeros(3)
  match = r"'layers\.0\.gate' is unknown in .* \(and 1 more\)"
  with pytest.raises(ValueError, match=match):
    folder.open_model(write(tensors))


def test_a_missing_tensor(write, tensors):
  del tensors["layers.1.up.bias"]
  with pytest.raises(ValueError, match=r"'layers\.1\.up\.bias' is missing in"):
    folder.open_model(write(tensors))


def test_a_wrong_shape(write, tensors):
  tensors["head.weight"] = tensors["head.weight"][:3]
  match = r"'head.weight' of .* has shape \[3, 4\]; its config.* \[5, 4\]"
  with pytest.raises(ValueError, match=match):
    folder.open_model(write(tensors))


def test_a_dtype_that_is_no_float(write, tensors):
  tensors["head.weight"] = np.zeros((5, 4), np.int8)
  with pytest.raises(ValueError, match="'head.weight' of .* is I8; allowed"):
    folder.open_model(write(tensors))
