"""The committed checks of the methods: all methods, and what was found."""

import json
import pathlib

from experiments.checks.__main__ import by_method, markdown, with_table
from experiments.checks.catalogue import CHECKS, METHODS

_ROOT = pathlib.Path(__file__).parents[1]
_HERE = _ROOT / "experiments" / "checks"


def results():
  return json.loads((_HERE / "results.json").read_text(encoding="utf-8"))


def test_every_method_has_a_check_and_every_check_a_method():
  configs = (_ROOT / "configs" / "methods").glob("*.py")
  assert sorted(METHODS) == sorted(path.stem for path in configs)
  assert {name for names in METHODS.values() for name in names} == set(CHECKS)


def test_the_tables_say_what_the_results_are():
  found = results()
  assert set(found) <= set(CHECKS)
  text = (_HERE / "results.md").read_text(encoding="utf-8")
  assert text == markdown(found)
  readme = (_HERE / "README.md").read_text(encoding="utf-8")
  assert by_method(found) in readme
  emptied = with_table(readme, by_method({}))
  assert by_method(found) not in emptied
  assert with_table(emptied, by_method(found)) == readme


def test_a_method_is_as_good_as_the_worst_of_its_checks():
  found = dict.fromkeys(
    CHECKS, {"rows": [], "asked": "", "holds": True, "control_fails": True}
  )
  assert f"| {len(METHODS)} hold |" in by_method(found)
  found["shared_prefix"] = found["shared_prefix"] | {"holds": False}
  table = by_method(found)
  assert "`shared_prefix`, `moving_windows` | **FAILS** |" in table
  assert f"| {len(METHODS) - 1} hold |" in table
