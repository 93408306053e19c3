"""Every method from the same base, reward and prompts, at equal network calls.

  python -m experiments.leaderboard --methods all --budget small

A network call is one evaluation of the velocity network for one image, with its
gradient or without; rollouts and updates are counted, as the run itself reports
them. A method gets as many iterations as its budget pays for. Runs whose
`summary.json` exists are not repeated. Writes, in this folder, `results.json`
(one record a run; those of runs elsewhere stay until a run of the same budget,
method and seed replaces them) and, by budget, the table and the plot.
"""

import argparse
import json
import pathlib

from experiments.leaderboard import runs, table
from spatialrl.io.workdir import write_json

_METHODS = pathlib.Path("configs/methods")
_HERE = pathlib.Path(__file__).parent


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--methods", nargs="+", default=["all"])
  parser.add_argument("--budget", choices=sorted(runs.BUDGETS), default="small")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--processes", type=int, choices=(1, 2), default=2)
  parser.add_argument("--runs", default="runs/leaderboard")
  args = parser.parse_args()
  known = sorted(path.stem for path in _METHODS.glob("*.py"))
  methods = known if args.methods == ["all"] else args.methods
  for method in methods:
    if method not in known:
      parser.error(f"--methods has {method!r}; allowed are {known} and 'all'.")
  folder = pathlib.Path(args.runs, args.budget)
  jobs = [
      (str(_METHODS / f"{m}.py"), folder / m / f"seed{s}", s, args.budget)
      for s in args.seeds
      for m in methods
  ]
  runs.all_of(jobs, args.processes)
  _write(args.budget, folder)


def _write(budget, folder):
  path = _HERE / "results.json"
  kept = json.loads(path.read_text()) if path.exists() else []
  every = runs.merged(kept, runs.records(folder, budget))
  write_json(path, every)
  records = [record for record in every if record["budget"] == budget]
  text = table.markdown(records)
  (_HERE / f"results_{budget}.md").write_text(text, encoding="utf-8")
  table.plot(records, _HERE / f"results_{budget}.png")
  print(text)


if __name__ == "__main__":
  main()
