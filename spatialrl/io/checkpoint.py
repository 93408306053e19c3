"""Checkpoints of a training state: written in the background, read strictly.

Orbax writes the arrays; `steps` knows the files and `leaves` the state.
"""

import concurrent.futures
import json
import math
import operator

import jax
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from spatialrl.io import leaves, steps, workdir
from spatialrl.io.steps import CheckpointError


class Checkpointer:
  """Saves the states of one run in the background, one save at a time.

  On several processes every method is called by all of them.
  """

  def __init__(self, directory, *, keep_last, keep_best=None):
    """Creates `directory`, or raises OSError if it cannot be written.

    Args:
      directory: local or remote (`gs://`) directory of the steps.
      keep_last: newest steps to keep, at least 1.
      keep_best: steps with the highest scores to keep beside them, or None.
    """
    if keep_last < 1:
      raise ValueError(f"keep_last is {keep_last}; allowed is 1 or more")
    if keep_best is not None and keep_best < 1:
      raise ValueError(f"keep_best is {keep_best}; allowed is None, 1 or more")
    self.directory = steps.absolute(directory)
    self.keep_last, self.keep_best = keep_last, keep_best or 0
    workdir.check_writable(self.directory)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._pending = None

  def save(self, step, state, metadata, *, score=None, block=False):
    """Copies `state` off the devices and writes it in the background.

    Waits for the save before it. A step that exists is replaced once the new
    one is whole.

    Args:
      step: int, 0 or more.
      state: pytree of arrays, typed PRNG keys and Python numbers. It may be
        donated or changed as soon as this returns.
      metadata: dict of JSON values, returned by `metadata(step)`.
      score: finite float, higher is better, or None: never among the best.
      block: whether to return only when the checkpoint is whole.

    Raises:
      CheckpointError: this save (with `block`) or the one before it failed;
        what was saved earlier is intact.
      ValueError: something in the arguments cannot be saved.
    """
    self.wait()
    step = operator.index(step)
    if step < 0:
      raise ValueError(f"step is {step}; allowed is 0 or more")
    if score is not None and not math.isfinite(score):
      raise ValueError(f"score of step {step} is {score}; it must be finite")
    table = leaves.leaf_table(state)
    values = [leaves.to_store(leaf) for leaf in jax.tree.leaves(state)]
    tree = leaves.nested_on_disk(table, values)
    commit = {
      "step": step,
      "metadata": json.loads(json.dumps(metadata, allow_nan=False)),
      "score": None if score is None else float(score),
      "leaves": table,
      "arrays": steps.free_name(path := steps.path_of(self.directory, step)),
    }
    context = ocp.Context()
    # Made in the background, a directory that fails is awaited for 20 minutes.
    context.asynchronous.create_directories_asynchronously = False
    try:
      if jax.process_index() == 0:
        self._make_room(path)
      arrays = path / commit["arrays"]
      with context:
        response = ocp.save_async(arrays, tree, overwrite=True)
    except Exception as error:  # Orbax and TensorStore raise many kinds
      raise self._failed(path, error) from error
    self._pending = self._thread.submit(self._finish, path, response, commit)
    if block:
      self.wait()

  def latest(self):
    """Returns the newest step that is whole, or None; logs what it skips."""
    self.wait()
    return latest_step(self.directory)

  def restore(self, step, like):
    """Returns the state of `step`; see the function `restore`."""
    self.wait()
    return restore(self.directory, step, like)

  def metadata(self, step):
    """Returns the dict given to `save`, as JSON keeps it (tuples are lists)."""
    self.wait()
    return read_metadata(self.directory, step)

  def wait(self):
    """Returns when nothing is in flight; raises what went wrong, once."""
    pending, self._pending = self._pending, None
    if pending is None:
      return
    try:
      pending.result()
    finally:
      if jax.process_count() > 1:  # Nobody looks before process 0 committed.
        multihost_utils.sync_global_devices("spatialrl.io.checkpoint")

  def close(self):
    """Waits, then ends the background thread."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _make_room(self, path):
    """Makes the directory of a step and removes what was never whole."""
    for other in steps.paths(self.directory):
      steps.remove_uncommitted(other)
    path.mkdir(exist_ok=True)

  def _finish(self, path, response, commit):
    """In the background: waits for Orbax, commits, drops old steps."""
    try:
      response.result()
      if jax.process_index() == 0:
        steps.write_commit(path, commit)
        steps.remove_uncommitted(path)
        self._drop_old()
    except Exception as error:  # Orbax and TensorStore raise many kinds
      raise self._failed(path, error) from error

  def _drop_old(self):
    scores = {}
    for path in steps.paths(self.directory):
      try:
        scores[path] = steps.read_commit(path)["score"]
      except CheckpointError:
        continue  # Left for a person to look at.
    paths = list(scores)
    scored = [path for path in paths if scores[path] is not None]
    scored.sort(key=lambda path: (scores[path], path.name), reverse=True)
    keep = paths[-self.keep_last :] + scored[: self.keep_best]
    for path in paths:
      if path not in keep:
        steps.remove(path)

  def _failed(self, path, error):
    """Frees what a failed save wrote; returns the error to raise."""
    if jax.process_index() == 0:
      try:
        steps.remove_uncommitted(path)
      except OSError as second:
        logging.warning("could not remove %s: %s", path, second)
    return CheckpointError(
      f"checkpoint {path} was not saved ({steps.reason(error)}); "
      "the checkpoints before it are intact"
    )


def latest_step(directory):
  """Returns the newest whole step of `directory`, or None; logs the others."""
  for path in reversed(steps.paths(steps.absolute(directory))):
    try:
      return steps.read_commit(path)["step"]
    except CheckpointError as error:
      logging.warning("skipped: %s", error)
  return None


def read_metadata(directory, step):
  """Returns the metadata of a step; CheckpointError if it is not whole."""
  path = steps.path_of(steps.absolute(directory), step)
  return steps.read_commit(path)["metadata"]


def restore(directory, step, like):
  """Reads the state of `step` into the structure and placement of `like`.

  Args:
    directory: of the steps; it is only read.
    step: a whole step, for instance `latest_step(directory)`.
    like: pytree of arrays, numbers or `jax.ShapeDtypeStruct`s. Each leaf comes
      back in its kind and sharding; a struct without sharding, like an array
      that is bound to no device, goes to the default device.

  Raises:
    ValueError: a leaf is missing, extra, or of another shape or dtype; the
      sentence names it with both shapes.
    CheckpointError: the step is not there, not whole, or cannot be read.
  """
  path = steps.path_of(steps.absolute(directory), step)
  table = leaves.leaf_table(like)
  commit = steps.read_commit(path)
  differs = leaves.difference(commit["leaves"], table)
  if differs:
    raise ValueError(f"{path} is a checkpoint of another model: {differs}")
  flat, treedef = jax.tree.flatten(like)
  values = _load(
    path / commit["arrays"], table, [leaves.target(leaf) for leaf in flat]
  )
  return treedef.unflatten(map(leaves.place, flat, values))


def load_params(path, step=None, *, field="params"):
  """Reads trained parameters on one machine, whatever mesh wrote them.

  Args:
    path: a run's workdir or its directory of checkpoints; it is only read.
    step: a whole step, or None for the newest.
    field: the part of the state to read: "params", or "ema" where there is one.

  Returns:
    Nested dict of numpy arrays; positions in a list or tuple become the keys
    "0", "1", ... Nothing but this part is read.

  Raises:
    CheckpointError: no whole step, or none that can be read.
    ValueError: the state has no such field.
  """
  directory = steps.absolute(path)
  if (directory / "checkpoints").is_dir():
    directory /= "checkpoints"
  step = latest_step(directory) if step is None else step
  if step is None:
    raise CheckpointError(f"there is no whole checkpoint in {directory}")
  path = steps.path_of(directory, step)
  commit = steps.read_commit(path)
  part = [leaf for leaf in commit["leaves"] if leaf["path"][0] == field]
  if not part:
    known = ", ".join(sorted({leaf["path"][0] for leaf in commit["leaves"]}))
    raise ValueError(f"{path} holds no {field!r}; it holds {known}")
  targets = [leaves.blank(leaf) for leaf in part]
  values = _load(path / commit["arrays"], part, targets)
  inner = [{**leaf, "path": leaf["path"][1:]} for leaf in part]
  return leaves.nested(inner, values)


def _load(path, table, targets):
  """Reads the leaves of a table from a directory, as what `targets` are."""
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  try:
    with context:
      tree = ocp.load(path, leaves.nested_on_disk(table, targets))
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise CheckpointError(
      f"checkpoint {path} cannot be read ({steps.reason(error)})"
    ) from error
  return leaves.values_on_disk(table, tree)
