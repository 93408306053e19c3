"""The leaves of a state by name: what a checkpoint holds and a run expects.

A leaf table is a list of {"path": list of str, "dtype": str, "shape": list of
int}, in the order of `jax.tree.leaves`. No files here.
"""

import jax
import numpy as np

_NUMBERS = (bool, int, float, complex)


def leaf_table(tree):
  """Returns the leaf table of a pytree of arrays, structs and numbers."""
  table, seen = [], {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
    path = [jax.tree_util.keystr((key,), simple=True) for key in keys]
    name = "/".join(path)
    if not path:
      raise ValueError(
        f"state is a single {type(leaf).__name__}; it must be a dict, tuple "
        "or dataclass of arrays"
      )
    if isinstance(leaf, _NUMBERS):
      leaf = np.asarray(leaf)
    if not _is_storable(leaf):
      raise ValueError(
        f"state leaf {name} is {leaf!r:.80} of type {type(leaf).__name__}; "
        "allowed are numeric arrays, PRNG keys and numbers"
      )
    # Orbax stores a leaf under its path joined by dots.
    other = seen.setdefault(".".join(path), name)
    if other is not name:
      raise ValueError(
        f"state leaves {other} and {name} have the same name on disk"
      )
    table.append(
      {"path": path, "dtype": str(leaf.dtype), "shape": [*leaf.shape]}
    )
  if not any(_has_data(leaf) for leaf in table):
    raise ValueError("state holds no array with data in it")
  return table


def to_store(leaf):
  """A jax array as it is; anything else as numpy, which Orbax copies."""
  return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def nested(table, values):
  """Returns `values` as nested dicts, along the paths of the table."""
  tree = {}
  for leaf, value in zip(table, values, strict=True):
    if not leaf["path"]:
      return value
    node = tree
    for key in leaf["path"][:-1]:
      node = node.setdefault(key, {})
    node[leaf["path"][-1]] = value
  return tree


def nested_on_disk(table, values):
  """Like `nested`, without arrays of size 0, which Orbax does not store."""
  pairs = zip(table, values, strict=True)
  kept = [(leaf, value) for leaf, value in pairs if _has_data(leaf)]
  return nested(*zip(*kept, strict=True))


def values_on_disk(table, tree):
  """The inverse of `nested_on_disk`; arrays of size 0 are made here."""
  values = []
  for leaf in table:
    value = tree
    if _has_data(leaf):
      for key in leaf["path"]:
        value = value[key]
    else:
      value = np.zeros(leaf["shape"], leaf["dtype"])
    values.append(value)
  return values


def blank(leaf):
  """A numpy array of a table entry's shape and dtype that takes no memory."""
  return np.broadcast_to(np.zeros((), leaf["dtype"]), leaf["shape"])


def difference(stored, wanted):
  """Says how two leaf tables differ, or returns "".

  Args:
    stored: leaf table of a checkpoint.
    wanted: leaf table of the state that should be restored.

  Returns:
    "a/b is float32[3] in it and float32[4] here (and 2 more leaves differ)".
  """
  stored, wanted = _texts(stored), _texts(wanted)
  differ = [
    f"{name} is {stored.get(name, 'absent')} in it "
    f"and {wanted.get(name, 'absent')} here"
    for name in [*wanted, *(name for name in stored if name not in wanted)]
    if stored.get(name) != wanted.get(name)
  ]
  more = f" (and {len(differ) - 1} more leaves differ)" * (len(differ) > 1)
  return differ[0] + more if differ else ""


def target(leaf):
  """What Orbax shall return for a leaf of `like`: numpy, or placed."""
  if _is_bound(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
  if isinstance(leaf, _NUMBERS):
    leaf = np.asarray(leaf)
  if _is_key(leaf):
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one)
  return blank({"shape": leaf.shape, "dtype": leaf.dtype})


def place(leaf, value):
  """Gives `value`, read with `target(leaf)`, the kind of `leaf`."""
  if isinstance(leaf, _NUMBERS):
    return type(leaf)(value.item())
  if isinstance(leaf, np.generic):
    return value[()]
  if isinstance(leaf, np.ndarray):
    return value
  if _is_bound(leaf):
    return jax.device_put(value, leaf.sharding)
  if _is_key(leaf):
    data = jax.device_put(np.asarray(jax.random.key_data(value)))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
  return jax.device_put(value)


def _has_data(leaf):
  return 0 not in leaf["shape"]


def _is_storable(leaf):
  if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
    return False
  return _is_key(leaf) or leaf.dtype.kind not in "OSUmM"


def _is_key(leaf):
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_bound(leaf):
  """Whether the leaf says on which devices it lives."""
  if isinstance(leaf, jax.Array):
    return leaf.committed
  return getattr(leaf, "sharding", None) is not None


def _texts(table):
  return {
    "/".join(leaf["path"]): f"{leaf['dtype']}{leaf['shape']}" for leaf in table
  }
