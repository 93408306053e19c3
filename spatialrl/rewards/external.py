"""A judge outside JAX: each host asks its pool about the images it holds."""

import jax
import numpy as np
from absl import logging

from spatialrl.parallel import distributed
from spatialrl.parallel import mesh as meshes
from spatialrl.records import Signals
from spatialrl.scenes.render import to_uint8

_ELSEWHERE = "none here, see the other processes"


class PoolDeadError(OSError):
  """Every score of several batches in a row failed."""


class External:
  """Makes a judge of a pool.

  A process scores the rows that lie on its devices; the scores, not the images,
  are then gathered, so that every process sees the same rewards and failures.
  """

  def __init__(self, name, pool, mesh, *, patience=3):
    """Keeps what it asks.

    Args:
      name: of the judge, for messages.
      pool: pool.Pool, or what is called like one.
      mesh: the mesh in use.
      patience: batches in a row without any score that stop the run.
    """
    self._name, self._pool = name, pool
    self._mesh, self._patience = mesh, patience
    self._dead = 0

  def __call__(self, images, prompts):
    """Scores images f32[B, S, S, 3] in [-1, 1]; what failed is -inf.

    Raises:
      PoolDeadError: no image got a score, for the `patience`-th time in a row.
    """
    rows, pixels = owned(meshes.put_rows(self._mesh, images))
    scores, reason = self._pool(pixels, [prompts[i] for i in rows])
    scores = np.asarray(scores, np.float32)
    scores = distributed.sum_rows(scores, rows, len(prompts))
    self._watch(scores, reason)
    whole = meshes.replicated(self._mesh)
    return Signals(scalar=meshes.put(scores, whole))

  def compilations(self):
    """Nothing is compiled."""
    return 0

  def close(self):
    """Stops the workers; the end of the process does so too."""
    self._pool.close()

  def _watch(self, scores, reason):
    failed = int(np.isneginf(scores).sum())
    if failed:
      logging.warning(
        "%s: %d of %d scores failed; the last reason was: %s",
        self._name, failed, len(scores), reason or _ELSEWHERE,
      )
    self._dead = self._dead + 1 if failed == len(scores) else 0
    if self._dead == self._patience:
      raise PoolDeadError(
        f"rewards.{self._name} gave no score in {self._dead} batches in a row;"
        f" the last reason was: {reason or _ELSEWHERE}"
      )


def owned(images):
  """The images that this process has to judge; each belongs to one process.

  Args:
    images: f32[B, S, S, 3] split over its rows, or copied, on any devices.

  Returns:
    (i64[n] rows in B, u8[n, S, S, 3]).
  """
  shards = [s for s in images.addressable_shards if s.replica_id == 0]
  shape = images.shape
  if not shards:  # all of it lies on other processes too, and is theirs
    return np.zeros(0, int), np.zeros((0, *shape[1:]), np.uint8)
  rows = [np.arange(shape[0])[s.index[0]] for s in shards]
  pixels = [to_uint8(jax.device_get(s.data)) for s in shards]
  return np.concatenate(rows), np.concatenate(pixels)


def check_fields(name, config, least):
  """Refuses a judge's settings that cannot work.

  Args:
    name: of the judge.
    config: its ConfigDict.
    least: dict from field to its smallest allowed value.

  Raises:
    ValueError: a field is missing or too small.
  """
  for field, low in least.items():
    value = config.get(field)
    if value is None or value < low:
      raise ValueError(
        f"rewards.{name}.{field} is {value}; it must be at least {low}."
      )
