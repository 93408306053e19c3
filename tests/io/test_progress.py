"""Progress: a bar on a terminal, few lines elsewhere."""

import io

import pytest

from spatialrl.io import progress


class Clock:
  """Seconds that pass only when told."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_plain_lines_are_ten_for_a_fast_job():
  stream = io.StringIO()
  seen = list(progress.progress(30, "draw", stream=stream, clock=Clock()))
  assert seen == list(range(30))
  lines = stream.getvalue().splitlines()
  starts = [line.split("  ")[0] for line in lines]
  assert starts == [f"draw {n}/30" for n in range(3, 31, 3)]


def test_a_job_that_goes_on_counts_what_was_done():
  stream, clock = io.StringIO(), Clock()
  bar = progress.progress(
    range(6, 8), "train", done=6, stream=stream, clock=clock
  )
  for _ in bar:
    clock.now += 20.0
  assert [line.split("  ")[:2] for line in stream.getvalue().splitlines()] == [
    ["train 7/8", "0:00:20 gone, 0:00:20 to go"],
    ["train 8/8", "0:00:40 gone, 0:00:00 to go"],
  ]


def test_a_slow_job_says_something_every_thirty_seconds():
  stream, clock = io.StringIO(), Clock()
  bar = progress.progress(range(100), "train", stream=stream, clock=clock)
  for step in bar:
    clock.now += 20.0
    bar.show({"reward": 0.25 + step, "loss": 1 / 3})
    if step == 3:
      break
  assert stream.getvalue().splitlines() == [
    "train 2/100  0:00:40 gone, 0:32:40 to go  reward 1.25  loss 0.3333",
  ]


def test_terminal_gets_a_bar_with_the_numbers():
  stream = Terminal()
  bar = progress.progress([3, 4], "eval", stream=stream)
  for _ in bar:
    bar.show({"accuracy": 0.5})
  text = stream.getvalue()
  assert "eval: 100%" in text
  assert "accuracy 0.5" in text
  assert "gone" not in text


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_nothing_to_do_is_no_error(stream):
  assert list(progress.progress([], "none", stream=stream)) == []
