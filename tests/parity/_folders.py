"""Golden folders as our parameter trees, read tensor by tensor."""

import json
import pathlib

import numpy as np
from safetensors.numpy import load_file

from spatialrl.convert.table import nested, to_ours

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "models"


def load(module, folder):
  """(sizes, params) of a golden folder, through a module of `convert`."""
  path = GOLDEN / folder
  sizes = module.read_config(json.loads((path / "config.json").read_text()))
  (file,) = path.glob("*.safetensors")
  tensors, flat = load_file(file), {}
  for entry in module.table(sizes):
    value = to_ours(entry, tensors[entry.name])
    if entry.layer is None:
      flat[entry.path] = value
    else:
      flat.setdefault(entry.path, {})[entry.layer] = value
  for path, value in flat.items():
    if isinstance(value, dict):
      flat[path] = np.stack([value[i] for i in range(len(value))])
  return sizes, nested(flat)
