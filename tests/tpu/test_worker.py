"""tpu/worker.sh as the scripts call it: install, start, mirror, stop."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from spatialrl.train.run import EXIT_STOPPED
from tests.tpu._world import TPU

# Stands for a virtual environment's interpreter running spatialrl.main: it
# writes what a job writes and ends as the file `end` in HOME says.
_PYTHON = f"""#!/usr/bin/env bash
trap 'echo saved >>"$workdir/metrics.jsonl"; exit {EXIT_STOPPED}' TERM
printf '%s\\n' "$JAX_PLATFORMS" "$@" >"$HOME/arguments"
workdir=$6
mkdir -p "$workdir/checkpoints/$(date +%s%N)"
touch "$workdir/config.json"
echo line >>"$workdir/metrics.jsonl"
echo output
while [[ ! -e $HOME/end ]]; do sleep 0.02; done
exit "$(<"$HOME/end")"
"""
# Does not wait for as long as it is asked to between two copies.
_SHORT_SLEEP = f"""#!/bin/sh
case $1 in
  1 | 2 | 4 | 8 | 16) echo "$1" >>"$WORLD/pauses" ;;
  *) exec {shutil.which("sleep")} "$1" ;;
esac
"""
_UV = f"""#!/usr/bin/env bash
echo "$@" >"$HOME/uv"
mkdir -p .venv/bin
cat >.venv/bin/python <<'END'
{_PYTHON}END
printf '#!/bin/sh\\necho "$@" >"$HOME/pip"\\n' >.venv/bin/pip
chmod +x .venv/bin/*
"""


def _git(folder, *arguments):
  identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
  return subprocess.run(
    ["git", *identity, "-C", folder, *arguments],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()


@pytest.fixture
def worker(world):
  """A slice of one worker whose HOME is a directory, set up from a checkout."""
  home = world.root / "home"
  (home / ".local/bin").mkdir(parents=True)
  uv = home / ".local/bin/uv"
  uv.write_text(_UV)
  uv.chmod(0o755)
  checkout = world.root / "a checkout"
  world.scripts = checkout / "tpu"
  shutil.copytree(TPU, world.scripts, ignore=shutil.ignore_patterns("env"))
  _git(checkout, "init", "--quiet")
  _git(checkout, "add", ".")
  _git(checkout, "commit", "--quiet", "-m", "scripts")
  world.exists()
  world.environment |= {"TPU_REPO": "", "TPU_SYNC_SECONDS": "0.05"}
  world.run("setup")
  yield world
  if (home / "spatialrl-run/child").exists():
    (home / "end").write_text("0")
    _wait(home / "spatialrl-run/exit_code")


def _wait(path, text=""):
  """Waits until the file is there and holds `text`; returns what it holds."""
  for _ in range(1000):
    if path.exists() and text in path.read_text() and path.read_text():
      return path.read_text()
    time.sleep(0.02)
  raise AssertionError(f"{path} did not come to hold {text!r}")


def _start(worker, workdir, *more, code=0):
  return worker.run(
    *("run", "--config", "configs/a b.py", "--workdir", workdir, *more),
    code=code,
  )


def _status(worker):
  script = worker.root / "home/spatialrl/tpu/worker.sh"
  home = {"HOME": str(worker.root / "home")}
  return subprocess.run(
    ["bash", script, "status"],
    env=os.environ | home,
    capture_output=True,
    text=True,
    check=True,
  ).stdout


def test_setup_brings_the_commit_that_is_checked_out(worker):
  home = worker.root / "home"
  checkout = worker.scripts.parent
  head = _git(checkout, "rev-parse", "HEAD")
  assert _git(home / "spatialrl", "rev-parse", "HEAD") == head
  assert (home / "pip").read_text() == "install --quiet -e .[tpu]\n"
  assert "--python 3.12" in (home / "uv").read_text()

  _git(checkout, "commit", "--quiet", "--allow-empty", "-m", "next")
  (worker.scripts / "env.example").write_text("changed")
  assert "uncommitted changes" in worker.run("setup")
  head = _git(checkout, "rev-parse", "HEAD")
  assert _git(home / "spatialrl", "rev-parse", "HEAD") == head


def test_a_job_leaves_its_log_and_its_exit_code(worker):
  run = worker.root / "home/spatialrl-run"
  workdir = str(worker.root / "a workdir")
  assert _status(worker) == "spatialrl-job: absent\n"
  _start(worker, workdir, "--", "--config.name=it's $HOME")
  assert "output" in _wait(run / "log", "output")
  assert _status(worker) == "spatialrl-job: running\n"
  assert "running already" in _start(worker, workdir, code=1)
  assert (worker.root / "home/arguments").read_text().splitlines() == [
    *("tpu,cpu", "-m", "spatialrl.main", "--config", "configs/a b.py"),
    *("--workdir", workdir, "--config.name=it's $HOME"),
  ]
  (worker.root / "home/end").write_text("3")
  assert _wait(run / "exit_code") == "3\n"
  assert _status(worker) == "spatialrl-job: exit 3\n"


def test_a_workdir_in_a_bucket_goes_there_and_comes_back(worker):
  home, bucket = worker.root / "home", worker.root / "buckets/bucket/a run"
  _start(worker, "gs://bucket/a run")
  assert _wait(bucket / "metrics.jsonl") == "line\n"
  (home / "end").write_text("0")
  assert _wait(home / "spatialrl-run/exit_code") == "0\n"
  (first,) = (bucket / "checkpoints").iterdir()

  # The next slice has empty disks; the job prunes the older checkpoint.
  (home / "end").unlink()
  shutil.rmtree(home / "spatialrl-run")
  _start(worker, "gs://bucket/a run")
  assert _wait(bucket / "metrics.jsonl", "line\nline\n")
  mirror = home / "spatialrl-run/mirror/bucket/a run"
  shutil.rmtree(mirror / "checkpoints" / first.name)
  (home / "end").write_text("0")
  assert _wait(home / "spatialrl-run/exit_code") == "0\n"
  (second,) = (bucket / "checkpoints").iterdir()
  assert second.name != first.name


@pytest.mark.parametrize("failures, code", ((5, 0), (6, 1)))
def test_the_last_copy_is_tried_again(worker, failures, code):
  (worker.root / "bin/sleep").write_text(_SHORT_SLEEP)
  (worker.root / "bin/sleep").chmod(0o755)
  home, bucket = worker.root / "home", worker.root / "buckets/bucket/run"
  (home / "end").write_text("0")
  worker.environment["TPU_SYNC_SECONDS"] = "5"
  worker.set(unreachable="yes\n" * failures + "no")
  _start(worker, "gs://bucket/run")
  run = home / "spatialrl-run"
  assert _wait(run / "exit_code") == f"{code}\n"
  assert (worker.root / "pauses").read_text().split() == [
    "1", "2", "4", "8", "16"
  ]
  assert (bucket / "metrics.jsonl").exists() == (code == 0)
  assert ("on this disk alone" in (run / "log").read_text()) == (code == 1)


def test_a_mirror_that_is_there_is_not_overwritten(worker):
  home, bucket = worker.root / "home", worker.root / "buckets/bucket/run"
  (home / "end").write_text("0")
  for lines in ("line\n", "line\nline\n"):
    _start(worker, "gs://bucket/run")
    assert _wait(home / "spatialrl-run/exit_code") == "0\n"
    assert (bucket / "metrics.jsonl").read_text() == lines
    (bucket / "metrics.jsonl").write_text("older\n")


def test_the_metrics_of_a_checkpoint_are_uploaded_before_it(worker):
  home = worker.root / "home"
  (home / "end").write_text("0")
  _start(worker, "gs://bucket/run")
  _wait(home / "spatialrl-run/exit_code")
  kinds = [
    ("--exclude=checkpoints/.*" in call, call[-1].endswith("/checkpoints"))
    for call in worker.calls("rsync", "frozen")
  ]
  assert kinds == [(True, False), (False, True), (False, True)]
  deletes = worker.calls("delete-unmatched")
  assert [call[-1] for call in deletes] == ["gs://bucket/run/checkpoints"]


def test_a_bucket_that_cannot_be_written_fails_the_job(worker):
  worker.set(forbidden="yes")
  _start(worker, "gs://bucket/run")
  run = worker.root / "home/spatialrl-run"
  assert _wait(run / "exit_code") == "1\n"
  assert "cannot write in gs://bucket/run" in (run / "log").read_text()
  assert not (worker.root / "home/arguments").exists()


def test_a_stopped_job_saves_and_is_copied(worker):
  home, bucket = worker.root / "home", worker.root / "buckets/bucket/run"
  _start(worker, "gs://bucket/run")
  _wait(home / "spatialrl-run/log", "output")
  worker.run("run", "--stop")
  assert _wait(home / "spatialrl-run/exit_code") == f"{EXIT_STOPPED}\n"
  assert (bucket / "metrics.jsonl").read_text() == "line\nsaved\n"
  assert _status(worker) == "spatialrl-job: stopped\n"
  worker.run("run", "--stop", code=1)


def test_a_machine_that_goes_down_leaves_all_in_the_bucket(worker):
  run, bucket = worker.root / "home/spatialrl-run", worker.root / "buckets/b/x"
  _start(worker, "gs://b/x")
  _wait(run / "log", "output")
  for name in ("pid", "child"):
    os.kill(int((run / name).read_text()), signal.SIGTERM)
  assert _wait(run / "exit_code") == f"{EXIT_STOPPED}\n"
  assert (bucket / "metrics.jsonl").read_text() == "line\nsaved\n"
  assert _status(worker) == f"spatialrl-job: exit {EXIT_STOPPED}\n"


def test_a_job_that_was_killed_is_lost(worker):
  run = worker.root / "home/spatialrl-run"
  _start(worker, str(worker.root / "workdir"))
  _wait(run / "log", "output")
  for name in ("pid", "child"):
    os.kill(int((run / name).read_text()), signal.SIGKILL)
  for _ in range(100):
    if "lost" in _status(worker):
      break
    time.sleep(0.02)
  assert _status(worker) == "spatialrl-job: lost\n"
  (run / "child").unlink()
