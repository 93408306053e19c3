"""Does a part that makes a method do what it says? Each check has a control.

  python -m experiments.checks [NAME ...]

The packaged policy, reward and heads on held-out prompts; some checks train for
minutes. Writes `results.json`, `results.md` and the table of README.md in this
folder; with names, only those checks are made anew.
"""

import argparse
import dataclasses
import json
import pathlib

import jax

from experiments.checks.catalogue import CHECKS, METHODS
from experiments.checks.world import Found, World
from spatialrl.io.workdir import write_json
from spatialrl.parallel.mesh import make_mesh
from spatialrl.platform import prepare_process

_HERE = pathlib.Path(__file__).parent
_WORSE = "holds", "not made yet", "**proves nothing**", "**FAILS**"


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("checks", nargs="*", metavar="NAME")
  chosen = parser.parse_args().checks
  for name in chosen:
    if name not in CHECKS:
      parser.error(f"{name!r} is no check; allowed are {sorted(CHECKS)}.")
  prepare_process()
  path = _HERE / "results.json"
  results = json.loads(path.read_text()) if chosen else {}
  with jax.set_mesh(make_mesh((-1, 1, 1))):
    world = World()
    for name in chosen or CHECKS:
      results[name] = dataclasses.asdict(CHECKS[name](world))
      write_json(path, results)
      print(name, Found(**results[name]).verdict, flush=True)
  (_HERE / "results.md").write_text(markdown(results), encoding="utf-8")
  readme = _HERE / "README.md"
  text = readme.read_text(encoding="utf-8")
  readme.write_text(with_table(text, by_method(results)), encoding="utf-8")


def with_table(text, table):
  """A text with a table of the same head as one of its own in its place."""
  start = text.index(table.partition("\n")[0])
  end = text.index("\n\n", start) + 1
  return text[:start] + table + text[end:]


def markdown(results):
  """A line a method, a line a check, then every table."""
  found = {n: Found(**results[n]) for n in CHECKS if n in results}
  lines = ["| check | asked | verdict |", "|---|---|---|"]
  lines += [
      f"| {_question(name)} | {one.asked} | {one.verdict} |"
      for name, one in found.items()
  ]
  parts = [by_method(results), "\n".join(lines) + "\n"]
  parts += [_section(name, one) for name, one in found.items()]
  return "\n".join(parts)


def by_method(results):
  """A line a method: its checks and what they say together."""
  lines, holding = ["| method | checks | verdict |", "|---|---|---|"], 0
  for method, checks in METHODS.items():
    verdicts = [
        Found(**results[name]).verdict if name in results else "not made yet"
        for name in checks
    ]
    said = max(verdicts, key=_WORSE.index)
    holding += said == _WORSE[0]
    names = ", ".join(f"`{name}`" for name in checks)
    lines.append(f"| {method} | {names} | {said} |")
  lines.append(f"| **all {len(METHODS)}** | | {holding} hold |")
  return "\n".join(lines) + "\n"


def _question(name):
  return CHECKS[name].__doc__.strip().split("\n")[0]


def _section(name, one):
  # JSON has lost the order; what says which row it is comes first.
  columns = sorted(
      {key for row in one.rows for key in row},
      key=lambda key: (not isinstance(one.rows[0].get(key), str), key),
  )
  lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
  for row in one.rows:
    cells = [_cell(row.get(column, "")) for column in columns]
    lines.append("| " + " | ".join(cells) + " |")
  _, *rest = CHECKS[name].__doc__.strip().split("\n")
  body = "\n".join(line.strip() for line in rest).strip()
  return f"## {_question(name)}\n\n{body}\n\n" + "\n".join(lines) + "\n"


def _cell(value):
  if not isinstance(value, float):
    return str(value)
  return f"{value:.3f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


if __name__ == "__main__":
  main()
