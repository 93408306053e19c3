"""What every training job does around its steps: files, resume, stopping."""

import contextlib
import signal

import jax

from spatialrl.io import workdir as workdirs
from spatialrl.io.checkpoint import Checkpointer
from spatialrl.io.metrics import MetricWriter, NonFiniteError, require_finite
from spatialrl.io.progress import progress
from spatialrl.parallel import distributed

# What a process ends with; `tpu/supervise.sh` starts again after STOPPED alone.
EXIT_DONE, EXIT_FAILED = 0, 1
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h


class Stopped(BaseException):
  """A stop was asked for; what there was to save was saved before.

  No Exception, because a signal's handler raises it wherever the run is, and
  what catches the errors of a library or a file must let it through.
  """


class Run:
  """Workdir, checkpoints, metrics and progress of one job.

  Use as a context: `restore`, then for each of `steps`: `log`, `maybe_save`.
  Numbers of a step are written before its checkpoint, so a run that is killed
  and started again leaves the same `metrics.jsonl` as one that was not.

  On several processes all of them call every method, at the same points.

  Attributes:
    unlogged: after `restore`, the numbers of the restored step if the run was
      stopped before they were written, else None.
  """

  def __init__(self, config, workdir):
    """Prepares `workdir`.

    Args:
      config: fields `job`, `steps`, `checkpoint` and, where there is one,
        `profile_steps`: () or (first, end), the iterations to trace.
      workdir: directory of the run, seen by all processes.
    """
    self._config = config
    self._traced = _traced(config)
    with distributed.in_turn():
      self._workdir = workdirs.prepare(workdir, config)
    keep = config.checkpoint
    self._checkpoints = Checkpointer(
        self._workdir / "checkpoints", keep_last=keep.keep_last
    )
    self._writer = self._bar = self.unlogged = None
    self._stop_signal = None
    self._saved = None
    self._handlers = {}

  def restore(self, state):
    """Returns the newest checkpoint of the workdir, or `state` as it is.

    Raises:
      ValueError: `metrics.jsonl` lacks lines that were there at its saving.
    """
    step = self._checkpoints.latest()
    if step is None:
      self._writer = MetricWriter(self._workdir)
      return state
    metadata = self._checkpoints.metadata(step)
    self.unlogged = metadata.get("unlogged")
    written = step - 1 if self.unlogged else step
    self._writer = MetricWriter(self._workdir, resume_step=written)
    logged = metadata.get("logged", -1)  # absent from early checkpoints
    if self._writer.last < logged:
      raise ValueError(
          f"{self._workdir}/metrics.jsonl ends at step {self._writer.last} and"
          f" the checkpoint of step {step} was saved after step {logged} was"
          " logged; bring back the file that belongs to it or take another"
          " workdir."
      )
    if jax.process_index() == 0:
      print(f"resuming {self._workdir} at step {step}", flush=True)
    self._saved = None if self.unlogged else step
    return self._checkpoints.restore(step, state)

  def steps(self, start):
    """Yields start, ..., config.steps - 1 behind a progress bar."""
    steps = range(start, self._config.steps)
    self._bar = progress(steps, self._config.job, done=start)
    with contextlib.ExitStack() as trace:
      for step in self._bar:
        if step in self._traced and step in (start, self._traced[0]):
          folder = str(self._workdir / "profile")
          trace.enter_context(jax.profiler.trace(folder))
        yield step
        if step == self._traced.stop - 1:
          trace.close()

  def log(self, step, values, show=()):
    """Writes the numbers of a step and shows some of them."""
    self.require_finite(step, values)
    self._writer.write(step, values)
    self.unlogged = None
    shown = show or ("loss", "grad_norm")
    if self._bar is not None:
      self._bar.show({name: values[name] for name in shown if name in values})

  def require_finite(self, step, values):
    """Raises NonFiniteErrorAt where a number of a step is NaN or infinite."""
    try:
      require_finite(step, values)
    except NonFiniteError as error:
      raise NonFiniteErrorAt(error, self._checkpoints.latest()) from error

  def maybe_save(self, state, step):
    """Saves when it is time or at the end, then stops if asked to.

    Raises:
      Stopped: see `pause`.
    """
    if step % self._config.checkpoint.every == 0 or step == self._config.steps:
      self._save(state, step)
    self.pause(state, step)

  def pause(self, state, step, unlogged=None):
    """A place where the run stops if SIGTERM, SIGINT or a preemption said so.

    Of several processes one that was told is enough: all stop at one place.

    Args:
      state: as it is after `step` iterations, not yet donated.
      step: int.
      unlogged: dict of numbers of that step that were not written yet, which a
        resumed run finds again; None if they were.

    Raises:
      Stopped: after saving.
    """
    if not (self._stop_signal or distributed.told_to_stop()):
      return
    if self._saved != step:
      self._save(state, step, unlogged)
    self._checkpoints.wait()
    name = "a stop signal"
    if self._stop_signal is not None:
      name = signal.Signals(self._stop_signal).name
    raise Stopped(f"{name} at step {step}; state saved, restart to go on.")

  def _save(self, state, step, unlogged=None):
    metadata = {"logged": self._writer.last}
    if unlogged:
      numbers = {name: float(value) for name, value in unlogged.items()}
      metadata["unlogged"] = numbers
    self._writer.sync()  # before a checkpoint that says so
    self._checkpoints.save(step, state, metadata)
    self._saved = step

  def __enter__(self):
    def handle(number, frame):
      del frame
      self._stop_signal = number

    if jax.process_count() == 1:  # else JAX has its own, which tells the others
      for number in (signal.SIGTERM, signal.SIGINT):
        self._handlers[number] = signal.signal(number, handle)
    return self

  def __exit__(self, *_):
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    if self._bar is not None:
      self._bar.close()
    if self._writer is not None:
      self._writer.close()
    self._checkpoints.close()


def stop_at_once(number, frame):
  """The handler of a signal as long as there is no state to save."""
  del frame
  name = signal.Signals(number).name
  raise Stopped(f"{name} with no state to save; restart to go on.")


def pause_stateless():
  """A place where several processes stop together that have nothing to save.

  A single one stops anywhere, by `stop_at_once`.

  Raises:
    Stopped: one of them was told to.
  """
  if distributed.told_to_stop():
    raise Stopped("a stop signal with no state to save; restart to go on.")


def _traced(config):
  """The range of iterations that `profile_steps` names."""
  pair = tuple(config.get("profile_steps", ()))
  if pair and not (len(pair) == 2 and 0 <= pair[0] < pair[1] <= config.steps):
    raise ValueError(
        f"profile_steps is {pair}; allowed are () and two iterations (first,"
        f" end) with 0 <= first < end <= {config.steps}."
    )
  return range(*pair) if pair else range(0)


class NonFiniteErrorAt(ValueError):
  """A NaN or infinity, with the checkpoint to go back to."""

  def __init__(self, error, last_good):
    where = "no checkpoint" if last_good is None else f"step {last_good}"
    super().__init__(f"{error}; the last good checkpoint is {where}.")
