"""The pages of the methods say what the configs are."""

import os
import pathlib

import pytest

from experiments.leaderboard import pages, table

_ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def root(monkeypatch):
  monkeypatch.chdir(_ROOT)


def test_the_committed_pages_are_what_the_configs_say(root):
  made = pages.pages()
  folder = _ROOT / "docs" / "methods"
  assert sorted(made) == sorted(os.listdir(folder))
  for name, text in made.items():
    assert (folder / name).read_text(encoding="utf-8") == text, name


def test_a_page_names_what_changes(root):
  page = pages.pages()["grpo_guard.md"]
  assert "| `objective.name` | `ppo` | `ppo_guard` |" in page
  assert "rollout.steps" not in page


def test_the_table_ranks_methods_and_gives_the_spread():
  base = {"all_relations": 0.5}
  names = ("object_recall", "diversity", "hacking_gap", "network_calls")
  records = [
    {"method": m, "all_relations": a, "base": base, "seconds": 60.0}
    | dict.fromkeys(names, 1.0)
    for m, a in (("one", 0.6), ("two", 0.7), ("two", 0.9))
  ]
  lines = table.markdown(records).splitlines()
  assert lines[2].startswith("| two | 2 | 0.800 ± 0.100 |")
  assert lines[3].startswith("| one | 1 | 0.600 |")
  assert lines[-1].startswith("| base | | 0.500 |")
