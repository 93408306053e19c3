"""Several processes, one for each host: start-up, agreement, what is shared.

All of them run the same program on the same prompts; each holds the rows of its
own devices. With one process nothing here has an effect.
"""

import contextlib
import itertools
import json
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from spatialrl.io import workdir as workdirs

# Names that other launchers of JAX use as well.
COORDINATOR, PROCESSES, INDEX = VARIABLES = (
  "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
)

_places = itertools.count(1)  # JAX wants their numbers to rise


def start(environment=os.environ):
  """Joins the other processes; called before anything asks for devices.

  With the three VARIABLES set ("host:port" of process 0, how many, which one)
  they count. Else, where JAX_PLATFORMS begins with "tpu", as `tpu/run.sh` sets
  it, the slice's metadata do. Else this is the only process.

  Args:
    environment: mapping with the variables.

  Raises:
    ValueError: some of the variables are missing, or no number where one
      belongs.
  """
  given = {name: environment.get(name, "") for name in VARIABLES}
  if any(given.values()):
    count, index = given[PROCESSES], given[INDEX]
    if not (given[COORDINATOR] and count.isdigit() and index.isdigit()) or (
      int(index) >= int(count)
    ):
      raise ValueError(
        f"the environment has {given}; needed are host:port, the number of"
        " processes, and the index of this one, from 0; or none of the three."
      )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(given[COORDINATOR], int(count), int(index))
  elif environment.get("JAX_PLATFORMS", "").startswith("tpu"):
    jax.distributed.initialize()


def check_same(config):
  """Refuses to go on where the processes were started differently.

  Args:
    config: dict of JSON values, with dicts inside, see `workdir.resolve`.

  Raises:
    ValueError: in every process the same sentence, which names the first
      fields that differ.
  """
  if jax.process_count() == 1:
    return
  mine = np.frombuffer(json.dumps(config).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(mine.size))
  padded = np.zeros(lengths.max(), np.uint8)
  padded[: mine.size] = mine
  texts = multihost_utils.process_allgather(padded)
  configs = [
    json.loads(text[:length].tobytes())
    for text, length in zip(texts, lengths, strict=True)
  ]
  for index, other in enumerate(configs):
    differ = workdirs.differences(
      configs[0], other, "config.{} is {} in process 0 and {} in process "
      f"{index}"
    )
    if differ:
      raise ValueError(f"{differ}; start all processes with the same command.")


def told_to_stop():
  """Whether one of several processes got a preemption notice or SIGTERM.

  All processes ask equally often, and hear yes at the same place. Of a single
  process the signals are its own affair, and the answer is no.
  """
  if jax.process_count() == 1:
    return False
  return multihost_utils.reached_preemption_sync_point(next(_places))


def from_first(array):
  """What process 0 has, in every process; arrays of one shape and dtype."""
  if jax.process_count() == 1:
    return array
  return np.asarray(multihost_utils.broadcast_one_to_all(array))


@contextlib.contextmanager
def in_turn():
  """Lets process 0 through first: what it writes, the others find.

  On a disk of their own they write it themselves.
  """
  first = jax.process_index() == 0
  if not first:
    _meet("in_turn")
  try:
    yield
  finally:
    if first:
      _meet("in_turn")


def to_host(tree):
  """The tree as numpy arrays, whole in every process.

  Called by all processes; one leaf after the other is put together on the
  devices.
  """

  def fetch(x):
    if isinstance(x, jax.Array) and not (
      x.is_fully_addressable or x.is_fully_replicated
    ):
      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(fetch, tree)


def sum_rows(mine, rows, total):
  """Rows that each were computed by one process, in every process.

  Args:
    mine: [n, ...] the rows of this process.
    rows: i64[n], which they are.
    total: B.

  Returns:
    numpy [B, ...].
  """
  mine = np.asarray(mine)
  whole = np.zeros((total, *mine.shape[1:]), mine.dtype)
  whole[rows] = mine
  if jax.process_count() == 1:
    return whole
  return multihost_utils.process_allgather(whole).sum(0)


def _meet(name):
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"spatialrl.parallel.{name}")
