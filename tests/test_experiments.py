"""Experiments as commands: help measures nothing, mistakes are a sentence."""

import subprocess
import sys
import types

import pytest

from experiments import seeds
from experiments.judge_server import __main__ as judge_server
from experiments.overlap import measure
from experiments.star import overhead


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
