"""Stopping at any place, what is found again, and traces of iterations."""

import os
import signal

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import multihost_utils
from ml_collections import config_dict

from spatialrl.io.checkpoint import Checkpointer
from spatialrl.io.metrics import read_metrics
from spatialrl.train.run import Run, Stopped, pause_stateless, stop_at_once


def config_of(**fields):
  return config_dict.ConfigDict({
    "job": "online", "steps": 4, "checkpoint": {"every": 10, "keep_last": 2},
    **fields,
  })


def state(step):
  return {"x": jnp.full(3, float(step))}


def test_nobody_stops_who_was_not_told(tmp_path):
  with Run(config_of(), tmp_path) as run:
    assert run.restore(state(0)) is not None and run.unlogged is None
    run.pause(state(1), 1)
  assert not list((tmp_path / "checkpoints").iterdir())


def test_a_stop_within_an_iteration_saves_the_state_before_it(tmp_path):
  with pytest.raises(Stopped, match="SIGTERM at step 1"):
    with Run(config_of(), tmp_path) as run:
      run.restore(state(0))
      run.log(1, {"loss": 1.0})
      run.pause(state(1), 1)
      os.kill(os.getpid(), signal.SIGTERM)
      run.pause(state(1), 1)
  with Run(config_of(), tmp_path) as run:
    assert (run.restore(state(0))["x"] == 1).all() and run.unlogged is None
  assert [row["step"] for row in read_metrics(tmp_path)] == [1]


def test_a_stop_within_an_evaluation_keeps_what_was_not_written(tmp_path):
  values = {"loss": jnp.float32(0.1), "host_seconds": 0.3}
  with pytest.raises(Stopped):
    with Run(config_of(), tmp_path) as run:
      run.restore(state(0))
      run.log(1, {"loss": 1.0})
      os.kill(os.getpid(), signal.SIGTERM)
      run.pause(state(2), 2, values)
  for _ in range(2):  # killed again before its checkpoint, it is found again
    with Run(config_of(), tmp_path) as run:
      assert (run.restore(state(0))["x"] == 2).all()
      assert run.unlogged == {n: float(v) for n, v in values.items()}
      run.log(2, run.unlogged)
      assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_metrics_that_are_older_than_the_checkpoint_are_refused(tmp_path):
  config = config_of(checkpoint={"every": 2, "keep_last": 2})
  with Run(config, tmp_path) as run:
    run.restore(state(0))
    for step in (1, 2):
      run.log(step, {"loss": 1.0})
      run.maybe_save(state(step), step)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "metrics.jsonl").write_text(lines[0])
  for _ in range(2):
    with pytest.raises(ValueError, match=r"metrics\.jsonl ends at step 1 and"):
      with Run(config, tmp_path) as run:
        run.restore(state(0))
  (tmp_path / "metrics.jsonl").write_text("".join(lines))
  with Run(config, tmp_path) as run:
    assert (run.restore(state(0))["x"] == 2).all()


def test_metrics_are_on_the_disk_before_their_checkpoint(tmp_path, monkeypatch):
  order = []
  fsync, save = os.fsync, Checkpointer.save
  monkeypatch.setattr(os, "fsync", lambda f: order.append("log") or fsync(f))
  monkeypatch.setattr(
    Checkpointer, "save", lambda *a: order.append("save") or save(*a)
  )
  with Run(config_of(), tmp_path) as run:
    run.restore(state(0))
    run.log(4, {"loss": 1.0})
    run.maybe_save(state(4), 4)
  assert order[:2] == ["log", "save"]


def test_a_stop_is_no_error_that_a_library_could_catch():
  with pytest.raises(Stopped, match="SIGTERM with no state"):
    try:
      stop_at_once(signal.SIGTERM, None)
    except Exception:  # as wide as what libraries catch
      pytest.fail("caught")


def test_several_processes_ask_at_places_that_rise(monkeypatch):
  asked = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    multihost_utils, "reached_preemption_sync_point",
    lambda place: asked.append(place) or len(asked) == 3,
  )
  pause_stateless()
  pause_stateless()
  with pytest.raises(Stopped, match="no state to save"):
    pause_stateless()
  assert asked == [asked[0] + i for i in range(3)]


def test_a_traced_iteration_leaves_a_trace_and_the_others_none(tmp_path):
  seen = []
  with Run(config_of(profile_steps=(1, 3)), tmp_path) as run:
    run.restore(state(0))
    for step in run.steps(0):
      seen.append(any((tmp_path / "profile").rglob("*.xplane.pb")))
      assert step < 4
  assert seen == [False, False, False, True]


@pytest.mark.parametrize("pair", [(1,), (2, 2), (-1, 2), (1, 5), (1, 2, 3)])
def test_iterations_that_are_not_there_cannot_be_traced(tmp_path, pair):
  with pytest.raises(ValueError, match=r"^profile_steps is .*<= 4"):
    Run(config_of(profile_steps=pair), tmp_path)


def test_a_bucket_is_no_workdir():
  with pytest.raises(ValueError, match="gs://bucket/run.*mounted directory"):
    Run(config_of(), "gs://bucket/run")


def test_a_run_may_go_on_elsewhere_but_not_as_another(tmp_path):
  Run(config_of(mesh=(-1, 1, 1), seed=1), tmp_path)
  Run(config_of(mesh=(1, 1, 1), seed=1, steps=9), tmp_path)
  with pytest.raises(ValueError, match="config.seed was 1, is 2"):
    Run(config_of(mesh=(1, 1, 1), seed=2), tmp_path)
