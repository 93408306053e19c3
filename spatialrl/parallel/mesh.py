"""The one mesh of a process, and the placement of batches on it."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")


def make_mesh(shape):
  """Builds the mesh; enter it once with `jax.set_mesh`.

  Axes are Auto: with Explicit ones, the default of `jax.make_mesh`, sharding
  constraints become assertions.

  Args:
    shape: three ints for data, fsdp and tensor; one may be -1 for all the
      devices that are left.

  Returns:
    jax.sharding.Mesh.

  Raises:
    ValueError: if the shape does not use every device exactly once.
  """
  devices = jax.device_count()
  shape = tuple(shape)
  fixed = int(np.prod([n for n in shape if n != -1]))
  if (
      len(shape) != 3
      or shape.count(-1) > 1
      or any(n < 1 and n != -1 for n in shape)
      or devices % fixed
      or (-1 not in shape and fixed != devices)
  ):
    raise ValueError(
        f"mesh is {shape}; allowed are three positive sizes {AXES}, one of"
        f" them -1 for the rest, whose product is {devices}, the number of"
        " devices."
    )
  shape = tuple(devices // fixed if n == -1 else n for n in shape)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def one_device():
  """A mesh of this process's first device, for what is done alone."""
  return jax.make_mesh(
      (1,) * len(AXES),
      AXES,
      axis_types=(AxisType.Auto,) * len(AXES),
      devices=jax.local_devices()[:1],
  )


def replicated(mesh):
  """Every device holds all of it."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh, axis=0):
  """Dimension `axis` split over the data axes, the others whole."""
  return NamedSharding(
      mesh, PartitionSpec(*(None,) * axis, ("data", "fsdp"))
  )


def put(x, sharding):
  """One array, placed.

  Args:
    x: jax array; or numpy array, the same in every process, of which a process
      reads what its own devices hold.
    sharding: where it shall lie.
  """
  if isinstance(x, jax.Array):
    return jax.device_put(x, sharding)
  return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)


def put_rows(mesh, tree):
  """A batch as arrays split over the data axes.

  Args:
    mesh: the mesh in use.
    tree: arrays as `put` takes them, with a leading axis of rows.
  """
  rows = batched(mesh)
  return jax.tree.map(lambda x: put(x, rows), tree)


def shards(mesh):
  """Into how many parts `batched` splits."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def check_divides(mesh, field, value):
  """Raises ValueError unless `value` rows split evenly over the data axes."""
  parts = shards(mesh)
  if value % parts:
    raise ValueError(
        f"{field} is {value}; it must be a multiple of {parts}, the data"
        f" shards of mesh {dict(mesh.shape)}."
    )
