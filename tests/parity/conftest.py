"""The tiny networks of tests/golden/models, read through their tables."""

import functools
import json
import math
import pathlib
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialrl.convert import table

MODELS = pathlib.Path(__file__).parent.parent / "golden" / "models"


@pytest.fixture(scope="session")
def model_folder():
  """`model_folder("flux")` -> path."""
  return MODELS.joinpath


@pytest.fixture(scope="session")
def load_model():
  """`load_model("flux", convert.flux)` -> (sizes, params)."""

  @functools.cache
  def load(folder, module):
    fields = json.loads((MODELS / folder / "config.json").read_text())
    sizes = module.read_config(fields)
    tensors = load_file(MODELS / folder / "diffusion_pytorch_model.safetensors")
    for name in tensors.keys() - {e.name for e in module.table(sizes)}:
      assert any(re.fullmatch(skip, name) for skip in module.SKIPPED), name
    return sizes, _tree(module.table(sizes), tensors)

  return load


def _tree(entries, tensors):
  """Tensors as our parameters, layers stacked."""
  flat = {}
  for entry in entries:
    assert tensors[entry.name].shape == entry.shape, entry.name
    value = table.to_ours(entry, tensors[entry.name])
    flat.setdefault(entry.path, {})[entry.layer] = value
  for path, layers in flat.items():
    stack = [layers[i] for i in sorted(layers)] if None not in layers else None
    flat[path] = layers[None] if stack is None else np.stack(stack)
  return table.nested(flat)


@pytest.fixture(scope="session")
def as_tree():
  """`as_tree(entries, tensors by their names)` -> our parameters."""
  return _tree


@pytest.fixture(scope="session")
def given_vector():
  """`with given_vector(v):` networks condition on v, whatever t they get."""

  def given(vector):
    def interceptor(next_function, args, kwargs, context):
      if context.module.name == "time_embed":
        return vector
      if context.module.name in ("pooled_embed", "guidance_embed"):
        return np.zeros_like(vector)
      return next_function(*args, **kwargs)

    return nn.intercept_methods(interceptor)

  return given


@pytest.fixture(scope="session")
def assert_states():
  """`assert_states(ours, arrays, atol)`: all states of a golden file agree."""

  def check(ours, arrays, atol, features=3e-4):
    names = [n for n in arrays if n == "sample" or n.startswith("dbg_")]
    assert "sample" in names and len(names) > 5
    for name in names:
      # Angles reach 1000, with guidance 4000: an ulp there is up to 2.4e-4.
      bound = features if name.endswith("_proj") else atol
      np.testing.assert_allclose(
        ours[name], arrays[name], rtol=0, atol=bound, err_msg=name
      )

  return check


@pytest.fixture(scope="session")
def assert_gradients():
  """`assert_gradients(ours, theirs)`: each leaf within 1e-4 of its largest."""

  def check(path, a, b):
    name = jax.tree_util.keystr(path)
    atol = 1e-4 * np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)

  return functools.partial(jax.tree_util.tree_map_with_path, check)


@pytest.fixture(scope="session")
def in_bfloat16():
  """`in_bfloat16(network, params, inputs)` -> f32 output, in numpy.

  All states between must be in bfloat16, and all matrix products.
  """

  def run(network, params, inputs):
    apply = jax.jit(network.apply, static_argnames="mutable").lower(
      {"params": params}, **inputs, mutable="intermediates"
    )
    products = re.findall(
      r"stablehlo.dot_general.*-> tensor<.*x(\w+)>", apply.as_text()
    )
    assert set(products) == {"bf16"}
    out, between = apply.compile()({"params": params}, **inputs)
    dtypes = {x.dtype for x in jax.tree.leaves(between)}
    assert dtypes == {np.dtype(jax.numpy.bfloat16)}
    assert out.dtype == np.float32
    return np.asarray(out)

  return run


@pytest.fixture(scope="session")
def count():
  """Parameters of a network: `count(network, *inputs)`, nothing computed."""

  def shapes_of(network, **inputs):
    shapes = jax.eval_shape(
      lambda key, inputs: network.init(key, **inputs), jax.random.key(0), inputs
    )
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))

  return shapes_of
