"""STAR against its controls: same sampler, reward, prompts and network calls.

  python -m experiments.star --runs runs/star

Runs whose `summary.json` exists are not repeated. Writes, in this folder,
`results.json`, `results.md` and `results.png`.
"""

import argparse
import pathlib

from experiments.leaderboard import runs, table
from experiments.star.config import VARIANTS
from spatialrl.io.workdir import write_json

_HERE = pathlib.Path(__file__).parent
_BUDGET = "small"


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--variants", nargs="+", choices=VARIANTS)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--processes", type=int, choices=(1, 2), default=2)
  parser.add_argument("--runs", default="runs/star")
  args = parser.parse_args()
  config = _HERE / "config.py"
  jobs = [
      (f"{config}:{v}", pathlib.Path(args.runs, v, f"seed{s}"), s, _BUDGET)
      for s in args.seeds
      for v in args.variants or VARIANTS
  ]
  runs.all_of(jobs, args.processes)
  records = runs.records(args.runs, _BUDGET)
  write_json(_HERE / "results.json", records)
  text = table.markdown(records)
  (_HERE / "results.md").write_text(text, encoding="utf-8")
  table.plot(records, _HERE / "results.png")
  print(text)


if __name__ == "__main__":
  main()
