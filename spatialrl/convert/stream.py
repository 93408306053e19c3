"""Weights of a folder as our arrays, or as a checkpoint, tensor by tensor.

At no time more than one parameter is copied on the host, and for a checkpoint
no more than one tensor.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from spatialrl.convert import folder
from spatialrl.convert.table import Entry, nested, to_ours
from spatialrl.io import leaves, steps, workdir
from spatialrl.io.progress import progress

_CHUNK = 1 << 20  # Bytes of a layer from which on it is a chunk of its own.


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One of our parameters and the tensors that it is made of.

  Attributes:
    path: "blocks/image_q/kernel".
    shape: with the axis of the layers in front where it is stacked.
    dtype: numpy dtype that it shall have.
    entries: one Entry a layer, in their order, or the only one.
  """

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  entries: tuple[Entry, ...]

  @property
  def stacked(self):
    return self.entries[0].layer is not None

  def read(self, tensors, index=()):
    """A copy of `parameter[index]`, in `dtype` and row by row.

    Args:
      tensors: dict of name -> shards.Tensor.
      index: tuple of slices; () for all of it.
    """
    layer = functools.partial(self.layer, tensors)
    if not self.stacked:
      return layer(0, index)
    first, *inner = index or (slice(None),)
    rows = range(len(self.entries))[first]
    out = None
    for place, row in enumerate(rows):
      value = layer(row, tuple(inner))
      if out is None:
        out = np.empty((len(rows), *value.shape), self.dtype)
      out[place] = value
    return out

  def layer(self, tensors, row, index=()):
    """Like `read`, of one layer and without its axis."""
    entry = self.entries[row]
    value = to_ours(entry, tensors[entry.name].read())
    return np.array(value[index], self.dtype, order="C")


def parameters(whole, dtype=None):
  """The Parameters of a `folder.Whole`, in the order of its table.

  Args:
    whole: folder.Whole.
    dtype: of all parameters; None keeps the folder's, float64 as float32.
  """
  groups = {}
  for entry in whole.entries:
    groups.setdefault(entry.path, []).append(entry)
  found = []
  for path, entries in groups.items():
    entries.sort(key=lambda entry: entry.layer or 0)
    kinds = [whole.tensors[entry.name].dtype for entry in entries]
    kind = dtype or functools.reduce(jnp.promote_types, kinds)
    kind = jax.dtypes.canonicalize_dtype(kind)
    blank = np.broadcast_to(np.zeros((), kind), entries[0].shape)
    shape = to_ours(entries[0], blank).shape
    if entries[0].layer is not None:
      shape = (len(entries), *shape)
    found.append(Parameter(path, shape, kind, tuple(entries)))
  return found


def load(path, *, kind=None, dtype=None, placement=None):
  """Reads a folder of weights onto the devices.

  Each device slice is cut out of the mapped file; the host holds a copy of one
  parameter at a time besides the result.

  Args:
    path: a diffusers or transformers folder, in one file or in shards.
    kind: what it must hold, see `folder.open_model`.
    dtype: of all parameters; None keeps the folder's, float64 as float32.
    placement: function from a parameter's path ("blocks/image_q/kernel") and
      shape to its `jax.sharding.Sharding`; None puts all on the default device.

  Returns:
    (sizes of the network, nested dict of jax arrays).

  Raises:
    ValueError: see `folder.open_model`.
  """
  whole = folder.open_model(path, kind)
  return whole.sizes, load_whole(whole, dtype=dtype, placement=placement)


def load_whole(whole, *, dtype=None, placement=None):
  """The parameters of an open folder; see `load`."""
  default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  flat = {}
  name = f"read {whole.model.path.name}"
  for parameter in progress(parameters(whole, dtype), name):
    sharding = default
    if placement is not None:
      sharding = placement(parameter.path, parameter.shape)
    flat[parameter.path] = jax.make_array_from_callback(
      parameter.shape,
      sharding,
      functools.partial(parameter.read, whole.tensors),
      dtype=parameter.dtype,
    )
  return nested(flat)


def to_orbax(path, out, *, dtype=None):
  """Converts a folder to a checkpoint that `io.checkpoint` reads.

  `load_params(out)` gives the weights, `restore` places them on a mesh;
  `read_metadata(out, 0)` says which model they are. A conversion that was
  killed is not taken for a whole checkpoint, and starts afresh.

  Args:
    path: a diffusers or transformers folder.
    out: directory of the checkpoint, local.
    dtype: of all parameters; None keeps the folder's, float64 as float32.

  Raises:
    ValueError: see `folder.open_model`; or `out` has a checkpoint already.
  """
  whole = folder.open_model(path)
  directory = steps.absolute(out)
  workdir.check_writable(directory)
  step = steps.path_of(directory, 0)
  if (step / steps.COMMIT).exists():
    raise ValueError(f"{directory} has a checkpoint already; choose another.")
  steps.remove_uncommitted(step)
  found = parameters(whole, dtype)
  step.mkdir()
  table = _write_blanks(step / "arrays", found)
  # Orbax keeps a tree in a folder of its own, its arrays under their paths.
  (root,) = (path.parent for path in (step / "arrays").glob("*/_METADATA"))
  for parameter in progress(found, f"convert {whole.model.path.name}"):
    _write(root / _name(parameter), parameter, whole.tensors)
  steps.write_commit(
    step,
    {
      "step": 0,
      "metadata": {"class": whole.model.class_name, **whole.model.fields},
      "score": None,
      "leaves": table,
      "arrays": "arrays",
    },
  )


def _write_blanks(path, found):
  """Lets Orbax save zeros that take no memory; returns their leaf table."""
  blanks = {
    p.path: leaves.blank({"shape": p.shape, "dtype": p.dtype}) for p in found
  }
  tree = {"params": nested(blanks)}
  context = ocp.Context()
  context.memory.deepcopy_host_arrays = False
  # Zarr: one file a chunk, which can be written over at any time.
  context.array.saving.use_ocdbt = context.array.saving.use_zarr3 = False
  context.array.saving.scoped_storage_options_creator = _storage
  table = leaves.leaf_table(tree)
  with context:
    ocp.save(path, tree)
  return table


def _storage(keypath, value):
  """Large layers of a stack become chunks, so that each is written alone."""
  del keypath
  if not _by_layer(value.shape, value.dtype):
    return None
  return ocp.options.ArrayOptions.Saving.StorageOptions(
    chunk_byte_size=value.nbytes // value.shape[0], shard_axes=(0,)
  )


def _by_layer(shape, dtype):
  return len(shape) > 1 and math.prod(shape[1:]) * dtype.itemsize >= _CHUNK


def _name(parameter):
  return "params." + parameter.path.replace("/", ".")


def _write(path, parameter, tensors):
  """Fills one array that Orbax has laid out."""
  spec = {
    "driver": "zarr",
    "kvstore": path.as_uri() + "/",
    # The commit, written last, is what says that all is there.
    "context": {"file_io_sync": False},
  }
  store = tensorstore.open(spec, open=True).result()
  if parameter.stacked and _by_layer(parameter.shape, parameter.dtype):
    for row in range(len(parameter.entries)):
      store[row].write(parameter.layer(tensors, row)).result()
  else:
    store.write(parameter.read(tensors)).result()
