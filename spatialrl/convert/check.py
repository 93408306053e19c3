"""A converted folder against numbers that its reference computed."""

import dataclasses

import numpy as np

from spatialrl.convert import adapters, lora
from spatialrl.convert.stream import load_whole

# An output of a LoRA's check file -> the weight that the adapter has in it.
_WEIGHTS = {"": 1.0, "_half": 0.5, "_base": 0.0}


@dataclasses.dataclass(frozen=True)
class Difference:
  """How far an output is from its reference.

  Attributes:
    name: of the array.
    largest: absolute difference; nan if either has one, inf if shapes differ.
    scale: largest absolute value of the reference.
  """

  name: str
  largest: float
  scale: float

  @property
  def ratio(self):
    """`largest` over `scale`; over 1 for a reference of zeros."""
    return self.largest / (self.scale or 1.0)


def model_outputs(whole, arrays):
  """What a model folder gives for the inputs in `arrays`.

  Args:
    whole: folder.Whole.
    arrays: dict of name -> array, the inputs of a check file.

  Returns:
    dict of name -> array.

  Raises:
    ValueError: naming an input that is missing.
  """
  return _outputs(whole, load_whole(whole), arrays)


def lora_outputs(whole, path, arrays):
  """Like `model_outputs`, with a LoRA folder added to the weights.

  Returns:
    dict with each output NAME at adapter weight 1, and where `arrays` has such
    names, `NAME_half` at one half and `NAME_base` without the adapter; and
    "rank" and "alpha".
  """
  config, tree = adapters.to_tree(lora.read(path, whole), whole)
  params = load_whole(whole)
  found = {"rank": config.rank, "alpha": config.alpha}
  for suffix, weight in _WEIGHTS.items():
    if not any(name.endswith(suffix) for name in arrays):
      continue
    scaled = dataclasses.replace(config, alpha=weight * config.alpha)
    merged = adapters.merge(params, scaled, tree)
    outputs = _outputs(whole, merged, arrays)
    found |= {name + suffix: value for name, value in outputs.items()}
  return found


def compare(found, wanted):
  """The Differences of all arrays that both dicts hold, by name."""
  return [
    _difference(name, np.asarray(found[name]), np.asarray(wanted[name]))
    for name in sorted(found.keys() & wanted.keys())
  ]


def _outputs(whole, params, arrays):
  try:
    return whole.model.module.outputs(whole.sizes, params, arrays)
  except KeyError as error:
    raise ValueError(
      f"input {error} of {whole.model.class_name} is missing from the file."
    ) from error


def _difference(name, found, wanted):
  scale = float(np.abs(wanted).max(initial=0.0))
  if found.shape != wanted.shape:
    return Difference(name, float("inf"), scale)
  difference = np.abs(found.astype(np.float64) - wanted)
  return Difference(name, float(difference.max(initial=0.0)), scale)
