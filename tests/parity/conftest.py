"""The tiny networks of tests/golden/models, read through their tables."""

import functools
import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialrl.convert import table

_MODELS = pathlib.Path(__file__).parent.parent / "golden" / "models"


@pytest.fixture(scope="session")
def load_model():
  """`load_model("flux", convert.flux)` -> (sizes, params)."""

  @functools.cache
  def load(folder, module):
    fields = json.loads((_MODELS / folder / "config.json").read_text())
    sizes = module.read_config(fields)
    tensors = load_file(
      _MODELS / folder / "diffusion_pytorch_model.safetensors"
    )
    return sizes, to_tree(module.table(sizes), tensors)

  return load


@pytest.fixture(scope="session")
def as_tree():
  """`as_tree(entries, tensors)` -> our tree; every tensor must be used."""
  return to_tree


def to_tree(entries, tensors):
  flat = {}
  for entry in entries:
    assert tensors[entry.name].shape == entry.shape, entry.name
    value = table.to_ours(entry, tensors[entry.name])
    flat.setdefault(entry.path, {})[entry.layer] = value
  return table.nested(
    {
      path: layers[None]
      if None in layers
      else np.stack([layers[i] for i in range(len(layers))])
      for path, layers in flat.items()
    }
  )
