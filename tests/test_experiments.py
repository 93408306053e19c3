"""Experiments as commands: help measures nothing, mistakes are a sentence."""

import subprocess
import sys
import types

import pytest

from experiments import seeds
from experiments.judge_server import __main__ as judge_server
from experiments.leaderboard import runs
from experiments.overlap import measure
from experiments.rl_rig import __main__ as rl_rig
from experiments.star import overhead
from spatialrl.train.reflect import PHASES


@pytest.mark.parametrize("module", [measure, overhead])
def test_help_measures_nothing(module, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["x", "--help"])
  monkeypatch.setattr(module, "prepare_process", lambda: pytest.fail("began"))
  with pytest.raises(SystemExit) as ended:
    module.main()
  assert ended.value.code == 0 and "--out" in capsys.readouterr().out


def test_a_server_without_weights_says_so(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["x", "--weights", "nope", "--port", "0"])
  with pytest.raises(SystemExit, match="^error: weights 'nope' do not exist"):
    judge_server.main()


def test_a_seed_that_fails_ends_the_table(monkeypatch, tmp_path):
  monkeypatch.setattr(sys, "argv", [
      "x", "--config", "nope", "--runs", str(tmp_path), "--out", str(tmp_path)
  ])
  monkeypatch.setattr(
      subprocess, "run", lambda *_, **__: types.SimpleNamespace(returncode=1)
  )
  with pytest.raises(SystemExit, match="^error: seed 0 ended with code 1"):
    seeds.main()


def test_records_of_runs_elsewhere_stay_and_repeated_ones_are_replaced():
  def record(method, seed, value):
    return {"budget": "small", "method": method, "seed": seed, "value": value}

  kept = [record("b", 0, 1), record("a", 0, 2)]
  merged = runs.merged(kept, [record("a", 0, 3), record("a", 1, 4)])
  assert merged == [record("a", 0, 3), record("a", 1, 4), record("b", 0, 1)]


def test_differences_are_of_the_same_seed():
  records = [
      {"system": system, "round": 3, "seed": seed, "sg_iou": value,
       "all_relations": value, "network_calls": 20.0}
      for system, values in (("chain", (0.3, 0.6)), ("flow_grpo", (0.2, 0.5)))
      for seed, value in enumerate(values)
  ]
  records = records[:2] + records[:1:-1]  # Flow-GRPO's in another order
  (row,) = rl_rig.differences(records).splitlines()[2:]
  cells = [cell.strip() for cell in row.strip("|").split("|")]
  assert cells[:3] == ["chain, 3", "flow_grpo, 3", "0.100 ± 0.000"]
  assert cells[-1] == "35.0 ± 15.0"


def test_later_seeds_take_what_the_first_was_taught(monkeypatch, tmp_path):
  monkeypatch.setattr(subprocess, "run", lambda command, check: None)
  for name in ("diffuser", "editor", "drawn", "checker", "actor"):
    made = tmp_path / "seed0" / name / PHASES[name][1]
    made.parent.mkdir(parents=True)
    made.write_text("weights")
  args = types.SimpleNamespace(seeds=[0, 1], overrides=[])
  rl_rig.one_seed(tmp_path, 1, args)
  copied = tmp_path / "seed1/editor/editor.safetensors"
  assert copied.read_text() == "weights"
  assert not (tmp_path / "seed1/actor").exists()
  copied.unlink()  # as a run that began to teach its own would leave it
  with pytest.raises(SystemExit, match="seed1/editor was begun with a seed"):
    rl_rig.one_seed(tmp_path, 1, args)
