"""Records of runs to a table and a plot."""

import collections

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

_COLUMNS = (
    "all_relations", "object_recall", "diversity", "hacking_gap",
    "network_calls", "seconds",
)


def markdown(records):
  """A row a method, best first: mean ± standard error over seeds."""
  lines = [
      "| method | seeds | " + " | ".join(_COLUMNS) + " |",
      "|---" * (len(_COLUMNS) + 2) + "|",
  ]
  grouped = _by_method(records)
  ranked = sorted(
      grouped, key=lambda m: -np.mean([r["all_relations"] for r in grouped[m]])
  )
  for method in ranked:
    cells = [
        _spread([r[name] for r in grouped[method]], name)
        for name in _COLUMNS
    ]
    lines.append(
        f"| {method} | {len(grouped[method])} | " + " | ".join(cells) + " |"
    )
  base = records[0]["base"] if records else {}
  cells = [f"{base[name]:.3f}" if name in base else "" for name in _COLUMNS]
  lines.append("| base | | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def plot(records, path):
  """Oracle accuracy on the quick prompts against network calls, by method."""
  grouped = _by_method(records)
  figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
  styles = ("-", "--", ":")
  for i, (method, runs) in enumerate(sorted(grouped.items())):
    curves = [np.array(run["curve"]) for run in runs if run["curve"]]
    length = min((len(curve) for curve in curves), default=0)
    if not length:
      continue
    stack = np.stack([curve[:length] for curve in curves])
    calls, values = stack[0, :, 0], stack[:, :, 1]
    mean, spread = values.mean(0), values.std(0)
    (line,) = axes.plot(
        calls, mean, styles[i // 10 % 3], color=f"C{i % 10}", label=method
    )
    axes.fill_between(
        calls, mean - spread, mean + spread, color=line.get_color(), alpha=0.15
    )
  axes.set_xlabel("network calls (images x evaluations)")
  axes.set_ylabel("all relations right, by the oracle")
  axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
  figure.savefig(path, dpi=110)
  plt.close(figure)


def _by_method(records):
  grouped = collections.defaultdict(list)
  for record in records:
    grouped[record["method"]].append(record)
  return grouped


def _spread(values, name):
  values = np.array(values, float)
  digits = 0 if name in ("network_calls", "seconds") else 3
  mean = f"{values.mean():.{digits}f}"
  if len(values) == 1:
    return mean
  return f"{mean} ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"
