"""The one mesh of a process, and the placement of batches on it."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")


def make_mesh(shape, devices=None):
  """Builds the mesh; enter it once with `jax.set_mesh`.

  Axes are Auto: with Explicit ones, the default of `jax.make_mesh`, sharding
  constraints become assertions.

  Args:
    shape: three ints for data, fsdp and tensor; one may be -1 for all the
      devices that are left.
    devices: to use; None for all of this run's.

  Returns:
    jax.sharding.Mesh.

  Raises:
    ValueError: if the shape does not use every device exactly once.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  shape = tuple(shape)
  fixed = int(np.prod([n for n in shape if n != -1]))
  if (
      len(shape) != 3
      or shape.count(-1) > 1
      or any(n < 1 and n != -1 for n in shape)
      or count % fixed
      or (-1 not in shape and fixed != count)
  ):
    raise ValueError(
        f"mesh is {shape}; allowed are three positive sizes {AXES}, one of"
        f" them -1 for the rest, whose product is {count}, the number of"
        " devices."
    )
  shape = tuple(count // fixed if n == -1 else n for n in shape)
  types = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)


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


def compiler_options(mesh):
  """What programs over weights that `fsdp` splits are to be compiled with.

  A TPU's compiler would cut products with gathered weights into as many small
  ones as there are devices, to send each part while the last one is multiplied.
  By its own estimate FLUX takes 1.7 times as long that way.
  """
  if mesh.devices.flat[0].platform != "tpu":
    return {}
  return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}


def keep_rows(x):
  """Holds axis 0 of `x`, the images, split over the data axes of the mesh.

  Left alone, the compiler splits activations the way it finds the weights split
  and sends them around in every layer. The other axes are its own choice. With
  no mesh in use, or rows that it does not divide, as where only shapes are
  asked for, `x` stays as it is.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or x.shape[0] % shards(mesh):
    return x
  free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(
      x, PartitionSpec(("data", "fsdp"), *free)
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
