"""What every training job does around its steps: files, resume, stopping."""

import signal

import jax

from spatialrl.io import workdir as workdirs
from spatialrl.io.checkpoint import Checkpointer
from spatialrl.io.metrics import MetricWriter, NonFiniteError
from spatialrl.io.progress import progress

EXIT_STOPPED = 75  # EX_TEMPFAIL: start again to go on


class Stopped(Exception):
  """A stop signal arrived; the state was saved before this was raised."""


class Run:
  """Workdir, checkpoints, metrics and progress of one job.

  Use as a context: `restore`, then for each of `steps`: `log`, `maybe_save`.
  Numbers of a step are written before its checkpoint, so a run that is killed
  and started again leaves the same `metrics.jsonl` as one that was not.
  """

  def __init__(self, config, workdir):
    """Prepares `workdir`; fields `job`, `steps`, `checkpoint` are read."""
    self._config = config
    self._workdir = workdirs.prepare(workdir, config)
    keep = config.checkpoint
    self._checkpoints = Checkpointer(
        self._workdir / "checkpoints", keep_last=keep.keep_last
    )
    self._writer = self._bar = None
    self._stop_signal = None
    self._saved = None
    self._handlers = {}

  def restore(self, state):
    """Returns the newest checkpoint of the workdir, or `state` as it is."""
    step = self._checkpoints.latest()
    self._writer = MetricWriter(self._workdir, resume_step=step)
    if step is None:
      return state
    print(f"resuming {self._workdir} at step {step}", flush=True)
    self._saved = step
    return self._checkpoints.restore(step, state)

  def steps(self, start):
    """Yields start, ..., config.steps - 1 behind a progress bar."""
    steps = range(start, self._config.steps)
    self._bar = progress(steps, self._config.job)
    yield from self._bar

  def log(self, step, values, show=()):
    """Writes the numbers of a step and shows some of them."""
    try:
      self._writer.write(step, values)
    except NonFiniteError as error:
      raise NonFiniteErrorAt(error, self._checkpoints.latest()) from error
    shown = show or ("loss", "grad_norm")
    self._bar.show({name: values[name] for name in shown if name in values})

  def maybe_save(self, state, step, metadata=None):
    """Saves when it is time, at the end, or when asked to stop.

    Raises:
      Stopped: after saving, when SIGTERM or SIGINT arrived.
    """
    due = step % self._config.checkpoint.every == 0
    if due or step == self._config.steps or self._stop_signal:
      self._checkpoints.save(step, state, metadata or {})
      self._saved = step
    if self._stop_signal:
      self._checkpoints.wait()
      name = signal.Signals(self._stop_signal).name
      raise Stopped(f"{name} at step {step}; state saved, restart to go on.")

  def __enter__(self):
    def handle(number, frame):
      del frame
      self._stop_signal = number

    if jax.process_count() == 1:
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


class NonFiniteErrorAt(ValueError):
  """A NaN or infinity, with the checkpoint to go back to."""

  def __init__(self, error, last_good):
    where = "no checkpoint" if last_good is None else f"step {last_good}"
    super().__init__(f"{error}; the last good checkpoint is {where}.")
