"""Kills a run at random moments and compares its metrics with an unhurt one.

  python -m experiments.kill.run --config configs/quickstart.py:tiny \
    --runs runs/kill --kills 5 --out experiments/kill/results.json
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

from spatialrl.io.metrics import read_metrics, without_timings
from spatialrl.io.workdir import write_json


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--config", required=True)
  parser.add_argument("--runs", required=True, help="workdirs go here")
  parser.add_argument("--out", required=True)
  parser.add_argument("--kills", type=int, default=5)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("overrides", nargs="*", help="config.field=value")
  args = parser.parse_args()
  runs = pathlib.Path(args.runs)
  began = time.monotonic()
  _finish(_command(args, runs / "first"))
  _finish(_command(args, runs / "second"))
  steps = len(read_metrics(runs / "first"))
  pace = (time.monotonic() - began) / (2 * steps)  # seconds an iteration
  draw = random.Random(args.seed)
  moments = []
  for after in sorted(draw.uniform(0, 0.95 * steps) for _ in range(args.kills)):
    process = subprocess.Popen(_command(args, runs / "killed"))
    while _last_step(runs / "killed") < int(after):
      if process.poll() is not None:
        raise RuntimeError(f"the run ended with code {process.returncode}.")
      time.sleep(0.002)
    time.sleep(draw.uniform(0, 2 * pace))  # anywhere in an iteration or a save
    process.send_signal(signal.SIGKILL)
    process.wait()
    moments.append(_last_step(runs / "killed"))
  _finish(_command(args, runs / "killed"))
  rows = {
      name: without_timings(read_metrics(runs / name))
      for name in ("first", "second", "killed")
  }
  result = {
      "config": args.config,
      "steps": len(rows["first"]),
      "killed_after_steps": moments,
      "same_command_twice_is_identical": rows["first"] == rows["second"],
      "killed_run_is_identical": rows["first"] == rows["killed"],
  }
  write_json(args.out, result)
  print(json.dumps(result, indent=2))


def _command(args, workdir):
  return [
      sys.executable, "-m", "spatialrl.main", "--config", args.config,
      "--workdir", str(workdir),
      *(f"--{override}" for override in args.overrides),
  ]


def _last_step(workdir):
  """Iterations whose metrics are on disk; a torn last line does not count."""
  path = workdir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def _finish(command):
  subprocess.run(command, check=True)


if __name__ == "__main__":
  main()
