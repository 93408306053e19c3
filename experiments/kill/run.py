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
  whole = time.monotonic() - began
  _finish(_command(args, runs / "second"))
  draw = random.Random(args.seed)
  moments = []
  for _ in range(args.kills):
    process = subprocess.Popen(_command(args, runs / "killed"))
    moment = draw.uniform(0.05, 0.9) * whole
    try:
      process.wait(moment)
      break  # it was done before it could be killed
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.wait()
    path = runs / "killed" / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    moments.append({
        "after_seconds": moment,
        "last_step": rows[-1]["step"] if rows else 0,
    })
  _finish(_command(args, runs / "killed"))
  rows = {
      name: without_timings(read_metrics(runs / name))
      for name in ("first", "second", "killed")
  }
  result = {
      "config": args.config,
      "steps": len(rows["first"]),
      "kills": moments,
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


def _finish(command):
  subprocess.run(command, check=True)


if __name__ == "__main__":
  main()
