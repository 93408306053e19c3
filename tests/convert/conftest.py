"""A toy network with all that a table can say, and folders of it."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from spatialrl.convert import folder
from spatialrl.convert.table import Entry

LAYERS, WIDTH, WORDS = 3, 4, 6


def read_config(fields):
  return {"layers": fields["layers"]}


def table(sizes):
  yield Entry("words.weight", (WORDS, WIDTH), "words")
  yield Entry("temperature", (), "temperature")
  for i in range(sizes["layers"]):
    layer = f"layers.{i}"
    shape = (2 * WIDTH, WIDTH)
    yield Entry(f"{layer}.up.weight", shape, "layers/up/kernel", "dense", i)
    yield Entry(f"{layer}.up.bias", shape[:1], "layers/up/bias", layer=i)
    for path, part in (("left", (0, 3)), ("right", (3, 8))):
      yield Entry(
        f"{layer}.down.weight", shape[::-1], f"layers/{path}/kernel", "dense",
        layer=i, part=part,
      )
  yield Entry("head.weight", (5, WIDTH), "head/kernel", "dense")


def outputs(sizes, params, arrays):
  """Written over our tree, with each kernel as it is stacked."""
  x = params["words"][arrays["ids"]]
  layers = params["layers"]
  for i in range(sizes["layers"]):
    up = jnp.tanh(x @ layers["up"]["kernel"][i] + layers["up"]["bias"][i, None])
    x = x + up[:, :3] @ layers["left"]["kernel"][i]
    x = x + up[:, 3:] @ layers["right"]["kernel"][i]
  return {"logits": np.asarray(x @ params["head"]["kernel"])}


def reference(tensors, ids):
  """The same over the tensors of a folder."""
  x = tensors["words.weight"][ids]
  for i in range(LAYERS):
    up = x @ tensors[f"layers.{i}.up.weight"].T
    up = np.tanh(up + tensors[f"layers.{i}.up.bias"])
    x = x + up @ tensors[f"layers.{i}.down.weight"].T
  return x @ tensors["head.weight"].T


@pytest.fixture
def toy(monkeypatch):
  """Makes the package read folders of class "Toy"."""
  module = types.ModuleType("spatialrl.convert.toy")
  module.read_config, module.table = read_config, table
  module.outputs, module.SKIPPED = outputs, (r".*\.ids",)
  module.canonical = lambda name: name.removeprefix("model.")
  monkeypatch.setitem(sys.modules, module.__name__, module)
  monkeypatch.setitem(folder.SUPPORTED, "Toy", "toy")
  return module


@pytest.fixture
def tensors(rng):
  """The toy's tensors as a folder has them, a buffer among them."""
  shapes = {entry.name: entry.shape for entry in table({"layers": LAYERS})}
  found = {
    name: np.asarray(rng.standard_normal(shape), np.float32)
    for name, shape in shapes.items()
  }
  return found | {"words.ids": np.arange(3)}


@pytest.fixture
def write(tmp_path, toy):
  """Writes the tensors of a folder: `write(tensors, files=2) -> path`."""

  def write_folder(tensors, *, files=1, name="toy", dtype=np.float32):
    path = tmp_path / name
    path.mkdir()
    fields = {"_class_name": "Toy", "layers": LAYERS}
    (path / "config.json").write_text(json.dumps(fields))
    cast = {
      key: x.astype(dtype) if x.dtype == np.float32 else x
      for key, x in tensors.items()
    }
    if files == 1:
      save_file(cast, path / "model.safetensors")
      return path
    places = {}
    for i in range(files):
      shard = f"model-{i + 1:05}-of-{files:05}.safetensors"
      part = dict(list(cast.items())[i::files])
      save_file(part, path / shard)
      places |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path

  return write_folder


