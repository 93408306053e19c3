"""The numbers of a run: `metrics.jsonl`, one line a step, and TensorBoard.

Keys of timings end in `_seconds` or `_per_second`; without them two runs of the
same config and seed have equal files.
"""

import json
import math
import os
import pathlib

import jax
import tensorboardX

from spatialrl.io.workdir import naming

_FILE = "metrics.jsonl"
_TIMINGS = ("_seconds", "_per_second")


class NonFiniteError(ValueError):
  """A metric is NaN or infinite.

  Attributes:
    step: int, where it happened.
    name: str, key of the metric.
  """

  def __init__(self, step, name, value):
    super().__init__(f"{name} is {value} at step {step}; it must be finite")
    self.step, self.name = step, name


class MetricWriter:
  """Appends metrics to a run's workdir; only process 0 touches the files.

  Attributes:
    last: int, step of the last line that was kept or written, -1 without one.
      A process that has no file takes it that the lines are there.
  """

  def __init__(self, workdir, *, resume_step=None):
    """Opens the files and drops what a killed run wrote too much.

    Args:
      workdir: existing local directory.
      resume_step: the step of the restored checkpoint: its lines and those
        before it are kept, so the lines of a step must be written before that
        step is saved. None starts from nothing and keeps no line.

    Raises:
      ValueError: a line that is not the last is no JSON object with a step.
    """
    self._file = self._board = None
    self.last = last = -1 if resume_step is None else resume_step
    if jax.process_index() != 0:
      return
    workdir = pathlib.Path(workdir)
    self._path = workdir / _FILE
    self.last = _keep_until(self._path, last)
    self._file = self._path.open("a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"),
      purge_step=last + 1,
      flush_secs=30,
      filename_suffix=f".{last + 1:08d}",  # Names differ only by the second.
    )

  def write(self, step, values):
    """Writes one line, which outlives this process from here on.

    Args:
      step: int, 0 or more, not below that of the last line.
      values: dict of name -> finite number: Python, or 0-d array on the host.

    Raises:
      NonFiniteError: a value is NaN or infinite; nothing is written.
      ValueError: a value is no number, or a name is "step".
    """
    numbers = require_finite(step, values)
    self.last = int(step)
    if "step" in numbers:
      raise ValueError("a metric is named step; that key holds the step itself")
    if self._file is None:
      return
    row = {"step": int(step), **numbers}
    with naming(self._path):
      self._file.write(json.dumps(row) + "\n")
      self._file.flush()
    for name, number in numbers.items():
      self._board.add_scalar(name, number, int(step))

  def sync(self):
    """Returns when the lines outlive the machine as well."""
    if self._file is not None:
      with naming(self._path):
        os.fsync(self._file.fileno())

  def close(self):
    """Closes both files."""
    if self._file is not None:
      self._file.close()
      self._board.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def require_finite(step, values):
  """Returns `values` as floats sorted by name, or stops at what is not finite.

  Raises:
    NonFiniteError: names the step and the first such metric by name.
    ValueError: a value is no number.
  """
  numbers = {}
  for name in sorted(values):
    try:
      numbers[name] = float(values[name])
    except TypeError as error:
      raise ValueError(
        f"metric {name} at step {step} is {values[name]!r:.80}; "
        "it must be a number"
      ) from error
    if not math.isfinite(numbers[name]):
      raise NonFiniteError(step, name, numbers[name])
  return numbers


def read_metrics(path):
  """Returns the rows of a run as dicts, oldest first.

  Args:
    path: a `metrics.jsonl`, or the workdir it lies in. A last line that is
      still being written is left out.

  Raises:
    ValueError: a line before the last is no JSON object with a step.
  """
  path = pathlib.Path(path)
  path = path / _FILE if path.is_dir() else path
  return [row for row, _ in _rows(path)]


def without_timings(rows):
  """Returns the rows without the keys that differ from run to run."""
  return [
    {name: value for name, value in row.items() if not name.endswith(_TIMINGS)}
    for row in rows
  ]


def _keep_until(path, step):
  """Drops the lines after `step`, and a torn last one, all or nothing.

  Returns:
    The step of the last line that is left, or -1.
  """
  if not path.exists():
    return -1
  rows = [(row, line) for row, line in _rows(path) if row["step"] <= step]
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  with temporary.open("w", encoding="utf-8") as file:
    file.writelines(line + "\n" for _, line in rows)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  return rows[-1][0]["step"] if rows else -1


def _rows(path):
  """Yields (row, line) of each whole line."""
  lines = path.read_bytes().split(b"\n")
  if not lines[-1]:
    lines.pop()
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
      int(row["step"])
    except (ValueError, LookupError, TypeError) as error:
      if number == len(lines):  # A part of an object is never valid JSON.
        return
      raise ValueError(
        f"{path} line {number} is {line[:60]!r}; "
        "it must be a JSON object with a step"
      ) from error
    yield row, line.decode()
