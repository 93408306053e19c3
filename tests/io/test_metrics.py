"""Metrics: finite numbers, one line a step, equal after kill and resume."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from spatialrl.io import metrics


def _run(workdir, steps, resume_step=None):
  with metrics.MetricWriter(workdir, resume_step=resume_step) as writer:
    for step in steps:
      values = {"loss": 1.0 / (step + 3), "a/reward": np.float32(0.1) * step}
      writer.write(step, values)


def test_a_line_holds_the_step_then_sorted_floats(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    writer.write(3, {"b": np.float32(0.1), "a": 2, "c": np.bool_(True)})
    # Flushed: a kill from here on loses nothing.
    text = (tmp_path / "metrics.jsonl").read_text()
  value = float(np.float32(0.1))
  assert text == f'{{"step": 3, "a": 2.0, "b": {value!r}, "c": 1.0}}\n'


@pytest.mark.parametrize("torn", ["", '{"step": 9, "lo', "\x00\x00", "{}"])
def test_kill_and_resume_leaves_the_file_of_a_whole_run(tmp_path, torn):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  whole.mkdir(), killed.mkdir()
  _run(whole, range(12))
  _run(killed, range(9))
  with (killed / "metrics.jsonl").open("a") as file:
    file.write(torn)
  _run(killed, range(6, 12), resume_step=5)
  name = "metrics.jsonl"
  assert (killed / name).read_bytes() == (whole / name).read_bytes()
  assert sorted(p.name for p in killed.iterdir()) == [name, "tensorboard"]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
  _run(tmp_path, range(3))
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(path.read_bytes()[:-1])
  _run(tmp_path, range(3, 5), resume_step=2)
  assert [row["step"] for row in metrics.read_metrics(path)] == [*range(5)]


def test_a_start_from_nothing_keeps_no_line(tmp_path):
  _run(tmp_path, range(4))
  _run(tmp_path, range(2))
  assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [0, 1]


def test_resuming_is_all_or_nothing(tmp_path, monkeypatch):
  _run(tmp_path, range(4))
  before = (tmp_path / "metrics.jsonl").read_bytes()

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(metrics.os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    _run(tmp_path, [], resume_step=1)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_damaged_middle_line_is_named(tmp_path):
  _run(tmp_path, range(3))
  path = tmp_path / "metrics.jsonl"
  lines = path.read_text().splitlines()
  path.write_text("\n".join([lines[0], lines[1][:9], lines[2]]) + "\n")
  with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is"):
    metrics.read_metrics(path)
  with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is"):
    metrics.MetricWriter(tmp_path, resume_step=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_stop_with_step_and_name(tmp_path, bad):
  with pytest.raises(metrics.NonFiniteError) as caught:
    metrics.require_finite(7, {"a": 1.0, "loss": np.float32(bad)})
  assert (caught.value.step, caught.value.name) == (7, "loss")
  assert str(caught.value) == f"loss is {bad} at step 7; it must be finite"
  with metrics.MetricWriter(tmp_path) as writer:
    with pytest.raises(metrics.NonFiniteError):
      writer.write(7, {"a": 1.0, "loss": bad})
  assert metrics.read_metrics(tmp_path) == []


def test_what_is_no_number_is_refused(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    with pytest.raises(ValueError, match="metric a at step 0 is"):
      writer.write(0, {"a": np.ones(2)})
    with pytest.raises(ValueError, match="metric b at step 0 is None"):
      writer.write(0, {"b": None})
    with pytest.raises(ValueError, match="named step"):
      writer.write(0, {"step": 1})


def test_timings_are_what_ends_in_seconds(tmp_path):
  rows = [
    {"step": 1, "loss": 2.0, "step_seconds": 3.0, "images_per_second": 4.0}
  ]
  assert metrics.without_timings(rows) == [{"step": 1, "loss": 2.0}]
  assert "step_seconds" in rows[0]


def test_tensorboard_shows_one_run_after_resuming(tmp_path):
  _run(tmp_path, range(9))
  _run(tmp_path, range(6, 12), resume_step=5)
  board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
  board.Reload()
  events = board.Scalars("loss")
  assert [event.step for event in events] == [*range(12)]
  rows = metrics.read_metrics(tmp_path)
  np.testing.assert_allclose(
    [event.value for event in events], [row["loss"] for row in rows], rtol=1e-6
  )
  assert json.loads(json.dumps(rows)) == rows
