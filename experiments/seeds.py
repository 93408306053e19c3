"""Runs one online config with several seeds and tabulates what came out.

  python -m experiments.seeds --config configs/quickstart.py --seeds 0 1 2 \
    --runs runs/quickstart --out experiments/quickstart

A seed whose `summary.json` exists is not run again. Writes `results.json`, one
record a seed, `results.md`, the table with mean and standard error, and
`results.png`, the curve of every seed.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from spatialrl.io.metrics import read_metrics
from spatialrl.io.workdir import write_json

_ORACLE = ("all_relations", "per_relation", "object_recall", "diversity")
_PHASES = ("rollout", "reward", "update", "evaluation", "host")


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--config", required=True)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--runs", required=True, help="workdirs go here")
  parser.add_argument("--out", required=True, help="folder of the results")
  parser.add_argument("overrides", nargs="*", help="config.field=value")
  args = parser.parse_args()
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  records = []
  for seed in args.seeds:
    workdir = pathlib.Path(args.runs) / f"seed{seed}"
    if not (workdir / "summary.json").exists():
      _run(args.config, seed, workdir, args.overrides)
    records.append(_record(args.config, seed, workdir))
    write_json(out / "results.json", records)
    (out / "results.md").write_text(_table(records), encoding="utf-8")
  _plot(args.runs, args.seeds, out / "results.png")
  print(_table(records))


def _plot(runs, seeds, path):
  """Oracle accuracy on the quick prompts against iterations, a line a seed."""
  figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
  for seed in seeds:
    rows = read_metrics(pathlib.Path(runs) / f"seed{seed}")
    curve = [
        (row["step"], row["all_relations"], row["object_recall"])
        for row in rows if "all_relations" in row
    ]
    steps, right, found = np.array(curve).T
    (line,) = axes.plot(steps, right, label=f"seed {seed}")
    axes.plot(steps, found, ":", color=line.get_color())
  axes.set_xlabel("iteration")
  axes.set_ylabel("all relations right (dotted: things found)")
  axes.legend()
  figure.savefig(path, dpi=110)
  plt.close(figure)


def _run(config, seed, workdir, overrides):
  command = [
      sys.executable, "-m", "spatialrl.main", "--config", config,
      "--workdir", str(workdir), f"--config.seed={seed}",
      *(f"--{override}" for override in overrides),
  ]
  code = subprocess.run(command).returncode
  if code:
    sys.exit(f"error: seed {seed} ended with code {code}, see above.")
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  write_json(workdir / "peak.json", {"peak_rss_gb": usage.ru_maxrss / 2**20})


def _record(config, seed, workdir):
  summary = json.loads((workdir / "summary.json").read_text())
  rows = read_metrics(workdir)
  # Only runs that were started from here know their peak.
  peak = workdir / "peak.json"
  peak = json.loads(peak.read_text()) if peak.exists() else {}
  # The first iteration compiles; its time is not that of a phase.
  seconds = {
      phase: float(sum(r.get(f"{phase}_seconds", 0.0) for r in rows[1:]))
      for phase in _PHASES
  }
  return {
      "config": config,
      "seed": seed,
      "base": summary["base"],
      "final": summary["final"],
      "hacking_gap": summary["hacking_gap"],
      "reward_pair_accuracy": summary["reward_pair_accuracy"],
      "compilations": summary["compilations"],
      "images_updated": float(sum(r["images_updated"] for r in rows)),
      "ratio_first_deviation": max(r["ratio_first_deviation"] for r in rows),
      "wall_seconds": summary["seconds"],
      "phase_seconds": seconds,
      **peak,
  }


def _table(records):
  lines = ["| | base | final | change |", "|---|---|---|---|"]
  for name in _ORACLE:
    base = np.array([r["base"][name] for r in records], float)
    final = np.array([r["final"][name] for r in records], float)
    cells = (_spread(base), _spread(final), _spread(final - base))
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  gaps = np.array([r["hacking_gap"] for r in records], float)
  lines.append(f"| hacking gap | | {_spread(gaps)} | |")
  wall = np.array([r["wall_seconds"] for r in records]) / 60
  lines.append(f"| minutes | | {_spread(wall)} | |")
  if all("peak_rss_gb" in r for r in records):
    peak = np.array([r["peak_rss_gb"] for r in records])
    lines.append(f"| peak RSS, GB | | {_spread(peak)} | |")
  seeds = ", ".join(str(r["seed"]) for r in records)
  return f"Seeds {seeds}; mean ± standard error.\n\n" + "\n".join(lines) + "\n"


def _spread(values):
  """Mean ± standard error over seeds; the mean alone for one seed."""
  mean = f"{values.mean():.3f}"
  if len(values) == 1:
    return mean
  return f"{mean} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}"


if __name__ == "__main__":
  main()
