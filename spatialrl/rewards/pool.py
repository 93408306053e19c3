"""A bounded pool of workers on the host: images in, scores out, faults masked.

Nothing here imports JAX, so that a worker process, which imports this module
and its scorer's, is small where the scorer's is; that of `ocr` is not.
"""

import concurrent.futures
import contextlib
import multiprocessing
import numbers
import os
import queue
import threading
import time

import numpy as np

_START_SECONDS = 120.0  # a recogniser reads its weights meanwhile
_EXIT_SECONDS = 1.0
_LONGEST_PAUSE = 30.0
_LARGEST = float(np.finfo(np.float32).max)
_STARTING = threading.Lock()  # multiprocessing reaps dead children as it starts


class WorkerError(Exception):
  """A worker gave no usable answer; the text says why."""


class Pool:
  """Scores the images of a batch by a fixed number of workers.

  A batch is cut into chunks, and each worker has one chunk at a time. Chunks
  that failed are tried again after a pause that doubles, one image at a time,
  so that an image no worker survives does not take its neighbours with it; as
  chunks where all of several failed, since then it is not for their images.
  """

  def __init__(self, workers, *, batch, retries, backoff_seconds=0.5):
    """Keeps the workers; none is started before it is needed.

    Args:
      workers: list of objects with `score(images, prompts) -> f32[n]` that
        returns or raises WorkerError in bounded time, and `close()`.
      batch: images of a chunk.
      retries: how often what failed is tried again.
      backoff_seconds: pause before the first retry.
    """
    self._workers = workers
    self._batch, self._retries = batch, retries
    self._backoff = backoff_seconds
    self._idle = queue.LifoQueue()
    for worker in workers:
      self._idle.put(worker)
    self._lanes = concurrent.futures.ThreadPoolExecutor(len(workers))

  def __call__(self, images, prompts):
    """Scores images in their order.

    Args:
      images: u8[n, S, S, 3].
      prompts: list of n str.

    Returns:
      (f32[n], -inf where the score failed; str, why the last failure was one,
      or None).
    """
    count = len(prompts)
    scores, reason = np.full(count, -np.inf, np.float32), None
    todo = [
      slice(start, min(start + self._batch, count))
      for start in range(0, count, self._batch)
    ]
    for attempt in range(self._retries + 1):
      if attempt:
        time.sleep(min(self._backoff * 2 ** (attempt - 1), _LONGEST_PAUSE))
      answers = self._lanes.map(
        lambda rows: self._ask(images[rows], prompts[rows]), todo
      )
      failed = []
      for rows, (answer, why) in zip(todo, answers, strict=True):
        reason = why or reason
        if answer is None:
          failed.append(rows)
        else:
          scores[rows] = answer
      if not failed:
        break
      todo = failed if 1 < len(failed) == len(todo) else _singly(failed)
    if np.isfinite(scores).all():
      reason = None
    return scores, reason

  def close(self):
    """Stops the workers."""
    self._lanes.shutdown()
    for worker in self._workers:
      worker.close()

  def _ask(self, images, prompts):
    """(f32[n] or None, None or why not), by whichever worker is idle."""
    worker = self._idle.get_nowait()  # as many lanes as workers
    try:
      answer = worker.score(images, prompts)
    except WorkerError as error:
      return None, str(error)
    finally:
      self._idle.put(worker)
    failed = ~np.isfinite(answer)
    return answer, "a score was no finite number" if failed.any() else None


class Process:
  """A worker: a scorer in a process of its own, started when first asked.

  The process is killed when it is late, and started again when it is gone.
  """

  def __init__(self, make_scorer, *, timeout_seconds):
    """Keeps what to run.

    Args:
      make_scorer: function without arguments that another process can import;
        what it returns is called with u8[n, S, S, 3] and n str and gives n
        numbers, None or NaN for what it cannot score.
      timeout_seconds: bound of one call.
    """
    self._make, self._timeout = make_scorer, timeout_seconds
    self._process = self._pipe = None

  def score(self, images, prompts):
    """f32[n], -inf where the scorer failed.

    Raises:
      WorkerError: the scorer raised, was late or died.
    """
    if self._process is None:
      self._start()
    return self._receive(self._timeout, (images, prompts))

  def close(self):
    """Kills the process, if there is one."""
    if self._process is None:
      return
    self._process.kill()
    self._process.join()
    self._pipe.close()
    self._process = self._pipe = None

  def _start(self):
    # A fork would copy locks that JAX's threads hold.
    context = multiprocessing.get_context("spawn")
    try:
      ours, theirs = context.Pipe()
      process = context.Process(
        target=_serve, args=(self._make, theirs), daemon=True
      )
      with _STARTING, theirs:
        process.start()
    except OSError as error:  # no memory, processes or files are left
      raise WorkerError(f"a worker did not start: {error}") from error
    self._process, self._pipe = process, ours
    try:
      self._receive(_START_SECONDS)
    except WorkerError as error:
      self.close()
      raise WorkerError(f"a worker did not start: {error}") from error

  def _receive(self, seconds, *question):
    """Sends the question, if any, and returns the answer to it."""
    try:
      with deadline(seconds, self._process.kill):
        for message in question:
          self._pipe.send(message)
        answer, error = self._pipe.recv()
    except WorkerError:
      self.close()
      raise
    except (EOFError, OSError) as error:
      self._process.join(_EXIT_SECONDS)
      code = self._process.exitcode
      self.close()
      raise WorkerError(f"its process ended with code {code}") from error
    if error:
      raise WorkerError(error)
    return answer


def checked(scores, count):
  """What a scorer returned as f32[count], -inf where it is no finite number.

  Raises:
    WorkerError: they are not `count` values in a row, so that nobody can tell
      which belongs to which image.
  """
  if not isinstance(scores, list | tuple | np.ndarray):
    raise WorkerError(f"the scores are a {type(scores).__name__}, not a list")
  if len(scores) != count:
    raise WorkerError(f"{len(scores)} scores came for {count} images")
  usable = [float(s) if _usable(s) else -np.inf for s in scores]
  return np.array(usable, np.float32)


@contextlib.contextmanager
def deadline(seconds, cut):
  """Bounds a block that waits for someone else.

  Args:
    seconds: how long it may wait.
    cut: function, called then from another thread; it must make the wait end.

  Raises:
    WorkerError: `cut` was called, whatever the block has come to meanwhile.
  """
  late = threading.Event()

  def expire():
    late.set()
    cut()

  timer = threading.Timer(seconds, expire)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
    timer.join()  # or `cut` might hit the next block
    if late.is_set():
      raise WorkerError(f"no answer came within {seconds:g} seconds")


def _singly(chunks):
  """Slices of one row each, for slices of many."""
  return [slice(i, i + 1) for c in chunks for i in range(c.start, c.stop)]


def _usable(score):
  """Whether a score is a number that float32 can hold."""
  number = isinstance(score, numbers.Real) and not isinstance(score, bool)
  return number and abs(score) <= _LARGEST


def _serve(make_scorer, pipe):
  """Answers until the pipe closes; the body of a worker process."""
  os.setsid()  # so that what stops the run's group does not fail its images
  scorer, error = _tried(make_scorer)
  with contextlib.suppress(EOFError, OSError):  # the run is gone
    pipe.send((None, error))
    while error is None:
      pipe.send(_tried(_score, scorer, *pipe.recv()))


def _score(scorer, images, prompts):
  return checked(scorer(images, prompts), len(prompts))


def _tried(function, *arguments):
  """(what it returns, None) or (None, what it raised)."""
  try:
    return function(*arguments), None
  except WorkerError as error:
    return None, str(error)
  except Exception as error:  # whatever a scorer raises is told, not fatal
    return None, f"{type(error).__name__}: {error}"
