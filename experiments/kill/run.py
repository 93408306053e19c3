"""Kills a run at random moments and compares its metrics with an unhurt one.

  python -m experiments.kill.run --config configs/quickstart.py:tiny \
    --runs runs/kill --kills 15 --processes 1 --out experiments/kill/one.json

Signals are SIGKILL and SIGTERM in turn, drawn moments aside; of two processes
one gets the signal, and where it dies of it the other is killed as well, as
the machine that restarts a job would. Before the last start the newest
checkpoint is torn. Programs are compiled once, into a cache in the folder of
the runs.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

from spatialrl.io.metrics import read_metrics, without_timings
from spatialrl.io.workdir import write_json
from spatialrl.parallel.distributed import COORDINATOR, INDEX, PROCESSES
from spatialrl.train.run import EXIT_DONE, EXIT_STOPPED

_SKIPPED = "skipped: checkpoint"


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--config", required=True)
  parser.add_argument("--runs", required=True, help="workdirs go here")
  parser.add_argument("--out", required=True)
  parser.add_argument("--kills", type=int, default=15)
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("overrides", nargs="*", help="config.field=value")
  args = parser.parse_args()
  runs = pathlib.Path(args.runs)
  whole, killed = runs / "whole", runs / "killed"
  began = time.monotonic()
  finish(start(args, whole))
  steps = len(read_metrics(whole))
  pace = (time.monotonic() - began) / steps  # seconds an iteration, at most
  draw = random.Random(args.seed)
  events = []
  for kind in [signal.SIGKILL, signal.SIGTERM] * ((args.kills + 1) // 2):
    if len(events) == args.kills:
      break
    seconds = draw.uniform(0, 2 * pace)  # anywhere in an iteration or a save
    after = _last_step(killed) + draw.randint(0, max(1, steps // args.kills))
    events.append(hit(start(args, killed), killed, kind, after, seconds, draw))
    print(events[-1], flush=True)
  torn = tear(killed)
  skipped = _SKIPPED in finish(start(args, killed))
  rows = [without_timings(read_metrics(path)) for path in (whole, killed)]
  result = {
      "config": args.config,
      "processes": args.processes,
      "steps": steps,
      "events": events,
      "torn_checkpoint": torn,
      "torn_checkpoint_was_skipped_with_a_message": skipped,
      "metrics_are_identical": rows[0] == rows[1],
      "summaries_are_identical": _final(whole) == _final(killed),
  }
  write_json(args.out, result)
  print(json.dumps(result, indent=2))


def start(args, workdir):
  """The processes of one run, each with a log beside its workdir."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  command = [
      sys.executable, "-m", "spatialrl.main", "--config", args.config,
      "--workdir", str(workdir),
      *(f"--{override}" for override in args.overrides),
  ]
  cache = pathlib.Path(args.runs) / "compiled"
  started = []
  for index in range(args.processes):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    if args.processes > 1:
      environment |= {
          COORDINATOR: f"localhost:{port}",
          PROCESSES: str(args.processes),
          INDEX: str(index),
      }
    log = workdir.parent / f"{workdir.name}.{index}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
      process = subprocess.Popen(
          command, env=environment, stdout=file, stderr=subprocess.STDOUT
      )
    started.append((process, log))
  return started


def hit(started, workdir, kind, after, seconds, draw):
  """Sends one signal once `after` iterations are logged, and so long later."""
  while _last_step(workdir) < after and started[0][0].poll() is None:
    time.sleep(0.002)
  time.sleep(seconds)
  victim = draw.randrange(len(started))
  done = started[victim][0].poll() is not None
  if not done:
    started[victim][0].send_signal(kind)
  # SIGTERM kills only while Python imports, before there is a handler.
  if started[victim][0].wait() < 0:
    for process, _ in started:
      process.kill()
  codes = [process.wait() for process, _ in started]
  if kind == signal.SIGTERM and set(codes) - {EXIT_STOPPED, EXIT_DONE}:
    print(started[0][1].read_text()[-2000:], file=sys.stderr)
  return {
      "signal": kind.name,
      "process": victim,
      "steps_logged": _last_step(workdir),
      "exit_codes": codes,
  }


def finish(started):
  """What the processes said, once all of them are done."""
  for process, log in started:
    if process.wait() != EXIT_DONE:
      raise RuntimeError(f"a run failed; see {log}.")
  return "".join(log.read_text() for _, log in started)


def tear(workdir):
  """Cuts the largest file of the newest checkpoint short; returns its step."""
  newest = max((workdir / "checkpoints").glob("[0-9]*"))
  files = [path for path in (newest / "arrays").rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  return int(newest.name)


def _last_step(workdir):
  """Iterations whose metrics are on disk; a torn last line does not count."""
  path = workdir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def _final(workdir):
  summary = json.loads((workdir / "summary.json").read_text())
  return {name: summary[name] for name in ("base", "final", "hacking_gap")}


if __name__ == "__main__":
  main()
