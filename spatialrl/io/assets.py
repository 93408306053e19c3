"""Weights in one safetensors file with the sizes of their model beside them."""

import hashlib
import pathlib

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

PACKAGED = pathlib.Path(__file__).parent.parent / "assets"


def resolve(name):
  """Path of a weights file: as given, or the packaged one of that name."""
  path = pathlib.Path(name)
  if not path.exists() and (PACKAGED / name).exists():
    return PACKAGED / name
  return path


def save(path, params, metadata, dtype=np.float16):
  """Writes a nested dict of arrays; of several processes the first does.

  Args:
    path: file to write.
    params: nested dict of float arrays.
    metadata: dict of str to str: what the model is and how it was made.
    dtype: stored type; half precision halves the file and moves the outputs
      of the packaged models by less than their training noise.
  """
  if jax.process_index() != 0:
    return
  flat = {
    name: np.ascontiguousarray(np.asarray(leaf).astype(dtype))
    for name, leaf in _flatten(params).items()
  }
  try:
    save_file(flat, path, metadata)
  except SafetensorError as error:
    raise OSError(f"cannot write {path}: {error}") from error


def load(name):
  """Reads a weights file.

  Args:
    name: path, or the name of a packaged file.

  Returns:
    (nested dict of f32 arrays, dict of metadata).

  Raises:
    ValueError: if the file is missing or cut short.
  """
  path = _existing(name)
  try:
    with safe_open(path, framework="np") as file:
      metadata = dict(file.metadata() or {})
      flat = {key: file.get_tensor(key) for key in file.keys()}
  except SafetensorError as error:
    raise ValueError(
      f"weights {str(path)!r} cannot be read ({error}); the file is"
      " truncated or not a safetensors file."
    ) from error
  params = {}
  for key, value in flat.items():
    *parents, leaf = key.split("/")
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value.astype(np.float32)
  return params, metadata


def digest(name):
  """SHA-256 of a weights file, by which weights made for it know it.

  Raises:
    ValueError: if the file is missing.
  """
  return hashlib.sha256(_existing(name).read_bytes()).hexdigest()


def check_shapes(params, expected, source):
  """Raises ValueError naming the first leaf that another model has.

  Args:
    params: nested dict of arrays.
    expected: nested dict of arrays or shapes with `.shape`.
    source: str, where the weights are from.
  """
  found, wanted = _flatten(params), _flatten(expected)
  for name in sorted(found.keys() | wanted.keys()):
    has = found[name].shape if name in found else None
    needs = wanted[name].shape if name in wanted else None
    if has != needs:
      raise ValueError(
        f"weights {str(source)!r} are of another model: {name} has shape"
        f" {has}, the config needs {needs}."
      )


def _existing(name):
  path = resolve(name)
  if not path.is_file():
    known = sorted(p.name for p in PACKAGED.glob("*.safetensors"))
    raise ValueError(
      f"weights {str(name)!r} do not exist; give a path or one of the"
      f" packaged {known}."
    )
  return path


def _flatten(tree, prefix=""):
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{name}/")
    else:
      flat[prefix + name] = value
  return flat
