"""A pool of workers of which some hang, die or say nonsense."""

import functools
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from spatialrl.rewards import pool as pools
from tests.rewards import _scorers

IMAGES = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones(
  (1, 2, 2, 3), np.uint8
)
MEANS = np.arange(6, dtype=np.float32)
TIMEOUT = 3.0
ANSWERS = ("nan", "none", "text", "true", "huge", "list", "inf")


@pytest.fixture
def make_pool():
  """Returns make(workers, *, batch, retries, make), ended afterwards."""
  made = []

  def make(workers=2, *, batch=1, retries=0, make=_scorers.Scorer):
    made.append(pools.Pool(
      [pools.Process(make, timeout_seconds=TIMEOUT) for _ in range(workers)],
      batch=batch, retries=retries, backoff_seconds=0.01,
    ))
    return made[-1]

  yield make
  for pool in made:
    pool.close()
  assert not multiprocessing.active_children()


class Thread:
  """A worker that notes what it is asked, and how many others are at work."""

  def __init__(self, answer=None):
    self.answer, self.lock = answer, threading.Lock()
    self.calls, self.busy, self.busiest = [], 0, 0

  def score(self, images, prompts):
    with self.lock:
      self.calls.append(list(prompts))
      self.busy += 1
      self.busiest = max(self.busy, self.busiest)
    time.sleep(0.02 * (images[0].max() % 3))
    with self.lock:
      self.busy -= 1
    if self.answer:
      return self.answer(images, prompts)
    return images.mean((1, 2, 3), dtype=np.float32)

  def close(self):
    pass


def test_faults_fail_alone_and_within_their_time(make_pool):
  pool = make_pool(2)
  pool(IMAGES[:2], ["warm", "up"])  # so that start-up is not measured
  for fault, why in {
    "hang": "no answer came within 3 seconds",
    "freeze": "no answer came within 3 seconds",
    "late": "no answer came within 3 seconds",
    "die": "its process ended with code -9",
    "leave": "its process ended with code 3",
    "raise": "RuntimeError: no such luck",
    "short": "0 scores came for 1 images",
    "mapping": "the scores are a dict, not a list",
  }.items():
    prompts = ["a", fault, "b", "c", "d", "e"]
    began = time.monotonic()
    scores, reason = pool(IMAGES, prompts)
    assert time.monotonic() - began < TIMEOUT + 10, fault
    want = np.where(np.arange(6) == 1, -np.inf, MEANS)
    np.testing.assert_array_equal(scores, want, err_msg=fault)
    assert scores.dtype == np.float32 and reason == why


def test_an_answer_that_is_no_number_fails_without_its_neighbours(make_pool):
  pool = make_pool(1, batch=8)
  count = len(ANSWERS)
  images = IMAGES[np.arange(count + 1) % 6]
  scores, reason = pool(images, [*ANSWERS, "fine"])
  np.testing.assert_array_equal(scores, [-np.inf] * count + [MEANS[count % 6]])
  assert reason == "a score was no finite number"
  assert pool(IMAGES, ["fine"] * 6)[1] is None


def test_a_late_answer_is_not_taken_for_the_next(make_pool):
  pool = make_pool(1)
  scores, _ = pool(IMAGES[[5, 0]], ["late", "a"])
  np.testing.assert_array_equal(scores, [-np.inf, 0])
  time.sleep(1.2)  # when it would have come
  np.testing.assert_array_equal(pool(IMAGES, ["a"] * 6)[0], MEANS)


def test_an_image_that_kills_leaves_its_chunk_alone(make_pool):
  pool = make_pool(1, batch=3, retries=1)
  scores, reason = pool(IMAGES, ["a", "die", "c", "d", "e", "f"])
  np.testing.assert_array_equal(scores, [0, -np.inf, 2, 3, 4, 5])
  assert reason == "its process ended with code -9"


def test_the_images_of_a_single_chunk_are_retried_alone():
  def refuse(images, prompts):
    if "bad" in prompts:
      raise pools.WorkerError("not this one")
    return images.mean((1, 2, 3), dtype=np.float32)

  worker = Thread(refuse)
  pool = pools.Pool([worker], batch=8, retries=1, backoff_seconds=0)
  scores, _ = pool(IMAGES[:3], ["a", "bad", "c"])
  pool.close()
  np.testing.assert_array_equal(scores, [0, -np.inf, 2])
  assert worker.calls == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]


def test_a_worker_that_died_once_scores_at_the_retry(make_pool, tmp_path):
  make = functools.partial(_scorers.Scorer, str(tmp_path / "died"))
  pool = make_pool(1, retries=1, make=make)
  scores, reason = pool(IMAGES[:3], ["a", "die once", "c"])
  assert (tmp_path / "died").exists()
  np.testing.assert_array_equal(scores, [0, 1, 2])
  assert reason is None


def test_a_scorer_that_cannot_be_made_says_why(make_pool):
  scores, reason = make_pool(1, make=_scorers.broken)(IMAGES[:1], ["a"])
  np.testing.assert_array_equal(scores, [-np.inf])
  assert reason == "a worker did not start: OSError: no weights here"


def test_a_process_that_the_machine_refuses_is_a_failed_score(
  make_pool, monkeypatch
):
  def refuse(process):
    raise BlockingIOError(11, "Resource temporarily unavailable")

  context = multiprocessing.get_context("spawn")
  monkeypatch.setattr(context.Process, "start", refuse)
  scores, reason = make_pool(1)(IMAGES[:1], ["a"])
  assert scores == -np.inf and "did not start: [Errno 11]" in reason


def test_no_more_than_the_workers_are_in_flight_and_order_is_kept():
  worker = Thread()
  pool = pools.Pool([worker] * 3, batch=2, retries=0)
  many = np.concatenate([IMAGES] * 4)
  scores, _ = pool(many, [str(i) for i in range(24)])
  pool.close()
  np.testing.assert_array_equal(scores, np.tile(MEANS, 4))
  assert worker.busiest == 3
  assert sorted(worker.calls) == sorted(
    [str(i), str(i + 1)] for i in range(0, 24, 2)
  )


def test_retries_are_bounded_and_their_pauses_double(monkeypatch):
  def refuse(images, prompts):
    raise pools.WorkerError("not today")

  pauses = []
  worker = Thread(refuse)
  pool = pools.Pool([worker], batch=2, retries=8)
  # The worker's own naps go through the same function, for other durations.
  monkeypatch.setattr(pools.time, "sleep", pauses.append)
  scores, reason = pool(IMAGES[[0, 0, 0]], ["a", "b", "c"])
  pool.close()
  np.testing.assert_array_equal(scores, [-np.inf] * 3)
  assert reason == "not today"
  assert worker.calls == [["a", "b"], ["c"]] * 9  # no image is to blame
  assert [p for p in pauses if p] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_workers_end_with_a_run_that_is_killed(tmp_path):
  code = """
import multiprocessing, numpy as np, time
from spatialrl.rewards import pool
from tests.rewards import _scorers
if __name__ == "__main__":
  worker = pool.Process(_scorers.Scorer, timeout_seconds=60)
  worker.score(np.zeros((1, 2, 2, 3), np.uint8), ["a"])
  print(multiprocessing.active_children()[0].pid, flush=True)
  time.sleep(600)
"""
  script = tmp_path / "run.py"
  script.write_text(code)
  with subprocess.Popen(
    [sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
    env=os.environ | {"PYTHONPATH": os.getcwd()},
  ) as run:
    child = int(run.stdout.readline())
    groups = os.getpgid(child), os.getpgid(run.pid)
    run.kill()
  # Ctrl-C and its like reach a whole group, and the run may want answers still.
  assert groups[0] != groups[1]
  end = time.monotonic() + 20
  while time.monotonic() < end:
    try:
      status = pathlib.Path(f"/proc/{child}/stat").read_text()
    except FileNotFoundError:
      return
    if status.split()[2] == "Z":  # nobody reaps it where init is no init
      return
    time.sleep(0.05)
  raise AssertionError("the worker outlived its run")
