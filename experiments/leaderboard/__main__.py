"""Every method from the same base, reward and prompts, at equal network calls.

  python -m experiments.leaderboard --methods all --budget small

A network call is one evaluation of the velocity network for one image, with its
gradient or without; rollouts and updates are counted, as the run itself reports
them. A method gets as many iterations as its budget pays for. Runs whose
`summary.json` exists are not repeated. Writes, in this folder, `results.json`
(one record a run) and, by budget, the table and the plot.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from experiments.leaderboard import table
from spatialrl.io.metrics import read_metrics
from spatialrl.io.workdir import write_json
from spatialrl.train import fit_slots
from spatialrl.train import loop as loops
from spatialrl.train.configs import load_config

_METHODS = pathlib.Path("configs/methods")
_HERE = pathlib.Path(__file__).parent
# Network calls of a run. A default iteration of Flow-GRPO takes about a
# thousand of them at this scale.
BUDGETS = {"small": 50_000, "long": 400_000}
# The same for every method: groups small enough for a run of minutes.
SCALE = {"prompts.per_step": 6, "rollout.group": 8}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--methods", nargs="+", default=["all"])
  parser.add_argument("--budget", choices=sorted(BUDGETS), default="small")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--processes", type=int, choices=(1, 2), default=2)
  parser.add_argument("--runs", default="runs/leaderboard")
  args = parser.parse_args()
  known = sorted(path.stem for path in _METHODS.glob("*.py"))
  methods = known if args.methods == ["all"] else args.methods
  for method in methods:
    if method not in known:
      parser.error(f"--methods has {method!r}; allowed are {known} and 'all'.")
  jobs = [(m, s) for s in args.seeds for m in methods]
  with concurrent.futures.ThreadPoolExecutor(args.processes) as pool:
    runs = [pool.submit(_run, args, *job) for job in jobs]
    for job, run in zip(jobs, runs, strict=True):
      print(*job, f"{run.result():.3f}", flush=True)
  _write(args.budget, args.runs)


def _run(args, method, seed):
  """Trains a method with a seed unless done; all_relations at the end."""
  workdir = pathlib.Path(args.runs) / args.budget / method / f"seed{seed}"
  summary = workdir / "summary.json"
  if not summary.exists():
    settings = SCALE | overrides(method, BUDGETS[args.budget])
    command = [
        sys.executable, "-m", "spatialrl.main",
        "--config", str(_METHODS / f"{method}.py"),
        "--workdir", str(workdir), f"--config.seed={seed}",
        *(f"--config.{field}={value}" for field, value in settings.items()),
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "log.txt").open("a") as log:
      subprocess.run(command, check=True, stdout=log, stderr=log)
  return json.loads(summary.read_text())["final"]["all_relations"]


def overrides(method, budget):
  """Fields of a method's config that the scale and the budget decide.

  Args:
    method: str, stem of a file of configs/methods.
    budget: int, network calls.

  Returns:
    dict from field to value.
  """
  config = load_config(_METHODS / f"{method}.py")
  for field, value in SCALE.items():
    parent, leaf = field.split(".")
    config[parent][leaf] = value
  changed = {}
  if config.select.name == "topk_bottomk" and config.select.k > 1:
    config.select.k = changed["select.k"] = config.rollout.group // 4
  images = config.prompts.per_step * config.rollout.group
  twins = 1 if config.rollout.guidance == 1 else 2
  rows = loops.kept_rows(config)
  calls = images * config.rollout.steps * twins
  calls += fit_slots.update_calls(config, rows)
  steps = max(budget // calls, 1)
  every = max(steps // 8, 1)
  return changed | {
      "steps": steps, "eval.every": every, "checkpoint.every": steps,
  }


def _write(budget, runs):
  records = []
  for path in sorted(pathlib.Path(runs, budget).glob("*/seed*/summary.json")):
    summary = json.loads(path.read_text())
    rows = read_metrics(path.parent)
    records.append({
        "method": path.parts[-3],
        "seed": summary["seed"],
        "budget": budget,
        "network_calls": _calls(rows)[-1],
        **{
            name: summary["final"][name]
            for name in ("all_relations", "object_recall", "diversity")
        },
        "hacking_gap": summary["hacking_gap"],
        "seconds": summary["seconds"],
        "base": {
            name: summary["base"][name]
            for name in ("all_relations", "object_recall", "diversity")
        },
        "curve": [
            [calls, row["all_relations"]]
            for calls, row in zip(_calls(rows), rows, strict=True)
            if "all_relations" in row
        ],
    })
  path = _HERE / "results.json"
  kept = json.loads(path.read_text()) if path.exists() else []
  kept = [record for record in kept if record["budget"] != budget]
  write_json(path, kept + records)
  text = table.markdown(records)
  (_HERE / f"results_{budget}.md").write_text(text, encoding="utf-8")
  table.plot(records, _HERE / f"results_{budget}.png")
  print(text)


def _calls(rows):
  """Network calls up to each iteration."""
  each = [row["rollout_calls"] + row["update_calls"] for row in rows]
  return [int(total) for total in np.cumsum(each)]


if __name__ == "__main__":
  os.environ.setdefault("PYTHONUNBUFFERED", "1")
  main()
