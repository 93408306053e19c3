"""Does a chain of edits beat drawing again, and does RL help its parts?

  python -m experiments.rl_rig --runs runs/rl_rig

Trains what configs/rl_rig.py says, measures every system, and writes in this
folder `results.json`, one record a system, seed and round, `results.md` and
`results.png`. A seed is that of the Actor, of all RL, and of the prompts and
the noise of the evaluation; Diffuser, editor and Checker are taught once, with
the first seed. Phases that are done are not repeated.
"""

import argparse
import collections
import json
import pathlib
import shutil
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from spatialrl.io.workdir import write_json
from spatialrl.train.reflect import PHASES

_HERE = pathlib.Path(__file__).parent
_SHARED = ("diffuser", "editor", "drawn", "checker")  # taught by the first seed
# What is compared with what: (system, round), by the goals of the study.
_COMPARED = (
    (("chain", 3), ("chain", 0)),
    (("chain", 3), ("flow_grpo", 3)),
    (("chain", 2), ("best_of_one_shot", 1)),
    (("chain", 3), ("best_of_one_shot", 2)),
    (("chain_flow_grpo", 3), ("flow_grpo", 3)),
    (("chain_flow_grpo", 2), ("best_of_flow_grpo", 1)),
    (("chain_flow_grpo", 3), ("best_of_flow_grpo", 2)),
    (("chain_actor", 3), ("chain_untrained", 3)),
    (("chain_editor", 3), ("chain_untrained", 3)),
    (("chain", 3), ("chain_actor", 3)),
    (("chain", 3), ("chain_untrained", 3)),
    (("chain", 3), ("chain_rules", 3)),
    (("chain", 3), ("one_shot", 3)),
)
_SHOWN = (
    "sg_iou", "entity_iou", "relation_iou", "all_relations", "network_calls",
    "damage",
)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--runs", required=True, help="folder of the workdirs")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("overrides", nargs="*", help="config.field=value")
  args = parser.parse_args()
  records, details = [], []
  for seed in args.seeds:
    folder = one_seed(pathlib.Path(args.runs), seed, args)
    records += json.loads((folder / "results.json").read_text())
    details += json.loads((folder / "details.json").read_text())
  write_json(_HERE / "results.json", records)
  text = "\n".join(
      (table(records), differences(records), detail_table(details))
  )
  (_HERE / "results.md").write_text(text, encoding="utf-8")
  plot(records, _HERE / "results.png")
  first = pathlib.Path(args.runs, f"seed{args.seeds[0]}")
  chains = first / "eval" / "report" / "chains.png"
  if chains.exists():
    shutil.copy(chains, _HERE / "chains.png")
  print(text)


def one_seed(runs, seed, args):
  """Trains and measures with one seed; the folder of its evaluation."""
  workdir, first = runs / f"seed{seed}", runs / f"seed{args.seeds[0]}"
  for name in _SHARED if workdir != first else ():
    made = workdir / name / PHASES[name][1]
    if not made.exists():
      if made.parent.exists():
        raise SystemExit(
            f"error: {made.parent} was begun with a seed of its own; remove it,"
            f" and the part of {first} is taken."
        )
      half = workdir / f"{name}.part"
      shutil.rmtree(half, ignore_errors=True)
      shutil.copytree(first / name, half)
      half.rename(made.parent)
  subprocess.run(
      [
          sys.executable, "-m", "spatialrl.main",
          "--config", "configs/rl_rig.py", "--workdir", str(workdir),
          f"--config.seed={seed}", f"--config.eval.seeds=({seed},)",
          *(f"--{override}" for override in args.overrides),
      ],
      check=True,
  )
  return workdir / "eval"


def by_system(records):
  """{(system, round): records of all seeds}, in order of appearance."""
  grouped = collections.defaultdict(list)
  for record in records:
    grouped[record["system"], record["round"]].append(record)
  for rows in grouped.values():
    rows.sort(key=lambda record: record["seed"])
  return grouped


def table(records):
  """A row a system and round, mean and standard error over seeds."""
  lines = [
      "| system | round | " + " | ".join(_SHOWN) + " |",
      "|---" * (2 + len(_SHOWN)) + "|",
  ]
  for (system, k), rows in by_system(records).items():
    cells = [_spread([r[name] for r in rows]) for name in _SHOWN]
    lines.append(f"| {system} | {k} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def differences(records):
  """A row a comparison: differences paired by seed, SG-IoU's in % as well."""
  names = ("sg_iou", "all_relations", "network_calls")
  lines = [
      "| system, round | against | " + " | ".join(names) + " | sg_iou, % |",
      "|---" * (3 + len(names)) + "|",
  ]
  grouped = by_system(records)
  for one, other in _COMPARED:
    if one not in grouped or other not in grouped:
      continue
    pairs = list(zip(grouped[one], grouped[other], strict=True))
    cells = [_spread([a[n] - b[n] for a, b in pairs]) for n in names]
    cells.append(_spread([
        100 * (a["sg_iou"] / b["sg_iou"] - 1) for a, b in pairs
    ]))
    left, right = (f"{system}, {k}" for system, k in (one, other))
    lines.append(f"| {left} | {right} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def detail_table(details):
  """A row a chain: its edits, mean and standard error over seeds."""
  names = [n for n in details[0] if n not in ("system", "seed")]
  lines = [
      "| system | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|",
  ]
  for system in dict.fromkeys(d["system"] for d in details):
    rows = [d for d in details if d["system"] == system]
    cells = [_spread([r[name] for r in rows]) for name in names]
    lines.append(f"| {system} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def plot(records, path):
  """Scene-graph IoU against network calls, a line a system."""
  figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
  axes.set_prop_cycle(color=plt.get_cmap("tab20").colors[::2]
                      + plt.get_cmap("tab20").colors[1::2])
  grouped = by_system(records)
  for system in dict.fromkeys(name for name, _ in grouped):
    points = [
        (
            np.mean([r["network_calls"] for r in rows]),
            np.mean([r["sg_iou"] for r in rows]),
        )
        for (name, _), rows in grouped.items() if name == system
    ]
    axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=system)
  axes.set_xlabel("network calls an image")
  axes.set_ylabel("scene-graph IoU (oracle)")
  axes.legend(fontsize=8)
  figure.savefig(path, dpi=110)
  plt.close(figure)


def _spread(values):
  values = np.array([v for v in values if v is not None], float)
  if not len(values):
    return ""
  digits = 1 if abs(values.mean()) > 5 else 3
  mean = f"{values.mean():.{digits}f}"
  if len(values) == 1:
    return mean
  return f"{mean} ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"


if __name__ == "__main__":
  main()
