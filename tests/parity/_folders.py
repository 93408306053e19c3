"""Saved models as the tests read them: whole, in memory, one file."""

import collections
import json
import pathlib
import re

import numpy as np
from safetensors.numpy import load_file

from spatialrl.convert.table import nested, to_ours

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "models"


def load(module, folder):
  """A folder's network by the tables of its converter, every tensor placed.

  Args:
    module: of `spatialrl.convert`, such as `convert.t5`.
    folder: a path, or the name of a folder in GOLDEN.

  Returns:
    (sizes, params).
  """
  folder = GOLDEN / folder
  sizes = module.read_config(json.loads((folder / "config.json").read_text()))
  canonical = getattr(module, "canonical", lambda name: name)
  tensors = {
      canonical(name): tensor
      for name, tensor in load_file(folder / "model.safetensors").items()
  }
  entries = module.table(sizes)
  unknown = set(tensors) - {entry.name for entry in entries}
  skipped = {
      name
      for name in unknown
      if any(re.fullmatch(pattern, name) for pattern in module.SKIPPED)
  }
  assert unknown == skipped
  flat, stacks = {}, collections.defaultdict(dict)
  for entry in entries:
    assert tensors[entry.name].shape == entry.shape, entry
    value = to_ours(entry, tensors[entry.name])
    if entry.layer is None:
      flat[entry.path] = value
    else:
      stacks[entry.path][entry.layer] = value
  for path, layers in stacks.items():
    flat[path] = np.stack([layers[i] for i in range(len(layers))])
  return sizes, nested(flat)


def near(ours, theirs, tolerance=2e-5):
  """Asserts that all is within `tolerance` of the largest value of `theirs`."""
  theirs = np.asarray(theirs)
  assert ours.shape == theirs.shape
  assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()
