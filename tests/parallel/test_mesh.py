"""The mesh refuses shapes that leave devices out, and splits rows evenly."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.sharding import AxisType

from spatialrl.parallel import mesh as meshes

_ROOT = pathlib.Path(__file__).parents[2]

EIGHT = """
import jax, numpy as np
from spatialrl.parallel import mesh as meshes

mesh = meshes.make_mesh((2, -1, 2))
assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}, mesh
assert meshes.shards(mesh) == 4
rows = jax.device_put(np.arange(48).reshape(8, 6), meshes.batched(mesh))
assert {s.data.shape for s in rows.addressable_shards} == {(2, 6)}
held = sorted(s.data[0, 0].item() for s in rows.addressable_shards)
assert held == [0, 0, 12, 12, 24, 24, 36, 36], held
columns = jax.device_put(np.ones((3, 8)), meshes.batched(mesh, axis=1))
assert {s.data.shape for s in columns.addressable_shards} == {(3, 2)}
whole = jax.device_put(np.ones((3, 5)), meshes.replicated(mesh))
assert len(whole.addressable_shards) == 8 and whole.is_fully_replicated

# Auto axes: a constraint moves data instead of asserting where it is.
with jax.set_mesh(mesh):
  moved = jax.jit(
    lambda x: jax.lax.with_sharding_constraint(x, meshes.replicated(mesh)) + 1
  )(rows)
assert moved.is_fully_replicated and moved[7, 5] == 48

meshes.check_divides(mesh, "eval.batch", 12)
for value in (6, 1):
  try:
    meshes.check_divides(mesh, "eval.batch", value)
  except ValueError as error:
    assert f"eval.batch is {value}; it must be a multiple of 4" in str(error)
  else:
    raise SystemExit(f"{value} rows were taken")
for shape in ((3, -1, 1), (2, 2, 1), (16, 1, 1), (-1, -1, 2)):
  try:
    meshes.make_mesh(shape)
  except ValueError as error:
    assert f"mesh is {shape}" in str(error) and "is 8," in str(error)
  else:
    raise SystemExit(f"{shape} was taken")
"""


def test_eight_devices_hold_what_they_should():
  done = subprocess.run(
    (sys.executable, "-W", "error", "-c", EIGHT),
    cwd=_ROOT,
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    },
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", [(-1, 1, 1), (1, -1, 1), [1, 1, -1]])
def test_the_rest_goes_to_the_open_axis(shape):
  mesh = meshes.make_mesh(shape)
  assert mesh.axis_names == meshes.AXES
  assert mesh.axis_types == (AxisType.Auto,) * 3
  assert mesh.size == jax.device_count()


@pytest.mark.parametrize(
  "shape",
  [
    (1, 1),
    (1, 1, 1, 1),
    (-1, -1, 1),
    (0, 1, 1),
    (-1, 0, 1),
    (-2, 1, 1),
    (jax.device_count() + 1, -1, 1),
    (2 * jax.device_count(), 1, 1),
  ],
)
def test_a_shape_that_does_not_fit_is_one_sentence(shape):
  with pytest.raises(ValueError) as caught:
    meshes.make_mesh(shape)
  message = str(caught.value)
  assert f"mesh is {shape}" in message and "data" in message
  assert f"{jax.device_count()}, the number of devices" in message
  assert "\n" not in message


def test_any_number_of_rows_divides_one_device():
  mesh = meshes.make_mesh((-1, 1, 1))
  meshes.check_divides(mesh, "eval.batch", 7 * meshes.shards(mesh))
