"""How far a long job is: a bar on a terminal, a few plain lines elsewhere."""

import sys
import time

import tqdm

_LINES = 10  # Plain lines for a whole job, if none is due by the clock.
_SECONDS = 30.0  # At most, between two plain lines.


def progress(
  items, description, *, done=0, stream=None, clock=time.monotonic
):
  """Returns a `Progress` over `items`.

    for step in (bar := progress(range(start, steps), "online")):
      bar.show({"reward": reward})

  Args:
    items: a sized iterable to go through, or the int number of `advance()`s.
    description: str, the name of the job.
    done: how many items an earlier start of the job has done.
    stream: where to write, stderr if None.
    clock: function that returns seconds.
  """
  stream = sys.stderr if stream is None else stream
  return Progress(items, description, done, stream, clock)


class Progress:
  """A count of what is done, shown with the numbers that matter."""

  def __init__(self, items, description, done, stream, clock):
    self._items = range(items) if isinstance(items, int) else items
    self._total = done + len(self._items)
    self._description, self._stream, self._clock = description, stream, clock
    self._first = self._done = self._said = done
    self._numbers = ""
    self._start = self._said_at = clock()
    self._bar = None
    if stream.isatty():
      self._bar = tqdm.tqdm(
        total=self._total, initial=done, desc=description, file=stream,
        dynamic_ncols=True,
      )

  def __iter__(self):
    try:
      for item in self._items:
        yield item
        self.advance()
    finally:
      self.close()

  def show(self, numbers):
    """Sets the numbers that the bar or the next line carries.

    Args:
      numbers: dict of name -> float or int.
    """
    self._numbers = "  ".join(f"{k} {float(v):.4g}" for k, v in numbers.items())
    if self._bar is not None:
      self._bar.set_postfix_str(self._numbers, refresh=False)

  def advance(self, count=1):
    """Counts `count` more as done."""
    self._done += count
    if self._bar is not None:
      self._bar.update(count)
    elif self._is_due():
      self._say()

  def close(self):
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.close()

  def _is_due(self):
    return (
      self._done >= self._total
      or (self._done - self._said) * _LINES >= self._total
      or self._clock() - self._said_at >= _SECONDS
    )

  def _say(self):
    self._said, self._said_at = self._done, self._clock()
    seconds = self._said_at - self._start
    each = seconds / (self._done - self._first)
    left = each * (self._total - self._done)
    parts = (
      f"{self._description} {self._done}/{self._total}",
      f"{_time(seconds)} gone, {_time(left)} to go",
      self._numbers,
    )
    print("  ".join(filter(None, parts)), file=self._stream, flush=True)


def _time(seconds):
  minutes, seconds = divmod(round(seconds), 60)
  return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
