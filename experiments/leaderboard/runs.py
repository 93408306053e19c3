"""Runs of equal budget, each in a process of its own, and their records."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from spatialrl.io.metrics import read_metrics
from spatialrl.train import needs
from spatialrl.train.configs import load_config
from spatialrl.train.prepare import kept_rows

# Network calls of a run. An iteration of Flow-GRPO takes about a thousand of
# them at this scale.
BUDGETS = {"small": 50_000, "long": 400_000}
# The same for every method: groups small enough for a run of minutes.
SCALE = {"prompts.per_step": 6, "rollout.group": 8}
_ORACLE = ("all_relations", "object_recall", "diversity")


def all_of(jobs, processes):
  """Does what is not done yet, the first jobs first, and says how it ended.

  Args:
    jobs: list of (config FILE[:ARG], workdir, seed, name of the budget).
    processes: int, so many at once.
  """
  with concurrent.futures.ThreadPoolExecutor(processes) as pool:
    waiting = [pool.submit(_run, *job) for job in jobs]
    for (_, workdir, *_), run in zip(jobs, waiting, strict=True):
      print(workdir, f"{run.result():.3f}", flush=True)


def _run(config, workdir, seed, budget):
  """Trains unless done; all_relations at the end."""
  summary = workdir / "summary.json"
  if not summary.exists():
    settings = overrides(config, BUDGETS[budget])
    command = [
        sys.executable, "-m", "spatialrl.main", "--config", config,
        "--workdir", str(workdir), f"--config.seed={seed}",
        *(f"--config.{field}={value}" for field, value in settings.items()),
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "log.txt").open("a") as log:
      subprocess.run(
          command, check=True, stdout=log, stderr=log,
          env=os.environ | {"PYTHONUNBUFFERED": "1"},
      )
  return json.loads(summary.read_text())["final"]["all_relations"]


def overrides(config, budget):
  """Fields of a config that the scale and the budget decide.

  Args:
    config: FILE or FILE:ARG.
    budget: int, network calls.

  Returns:
    dict from field to value.
  """
  path, _, arg = config.partition(":")
  config = load_config(path, arg)
  changed = dict(SCALE)
  for field, value in SCALE.items():
    parent, leaf = field.split(".")
    config[parent][leaf] = value
  if config.select.name == "topk_bottomk" and config.select.k > 1:
    config.select.k = changed["select.k"] = config.rollout.group // 4
  images = config.prompts.per_step * config.rollout.group
  twins = 1 if config.rollout.guidance == 1 else 2
  calls = images * config.rollout.steps * twins
  calls += needs.update_calls(config, kept_rows(config))
  steps = max(budget // calls, 1)
  return changed | {
      "steps": steps, "eval.every": max(steps // 8, 1),
      "checkpoint.every": steps,
  }


def records(folder, budget):
  """What came out of the runs FOLDER/NAME/seedN: a list of dicts."""
  found = []
  for path in sorted(pathlib.Path(folder).glob("*/seed*/summary.json")):
    summary = json.loads(path.read_text())
    rows = read_metrics(path.parent)
    each = [row["rollout_calls"] + row["update_calls"] for row in rows]
    calls = [int(total) for total in np.cumsum(each)]
    found.append({
        "method": path.parts[-3],
        "seed": summary["seed"],
        "budget": budget,
        "network_calls": calls[-1],
        **{name: summary["final"][name] for name in _ORACLE},
        "hacking_gap": summary["hacking_gap"],
        "seconds": summary["seconds"],
        "base": {name: summary["base"][name] for name in _ORACLE},
        "curve": [
            [total, row["all_relations"]]
            for total, row in zip(calls, rows, strict=True)
            if "all_relations" in row
        ],
    })
  return found


def merged(kept, found):
  """Records of earlier runs and new ones, which replace those they repeat."""
  def name(record):
    return record["budget"], record["method"], record["seed"]

  every = {name(record): record for record in [*kept, *found]}
  return [every[key] for key in sorted(every)]
