"""How main ends: alone, and as one of several processes."""

import types

import pytest
from ml_collections import ConfigDict

from spatialrl import main


@pytest.fixture
def run(monkeypatch):
  """Runs main on a config, as one of several processes or alone."""

  def call(job, several):
    monkeypatch.setattr(
        main, "CONFIG", types.SimpleNamespace(value=ConfigDict({"job": job}))
    )
    monkeypatch.setattr(main, "_WORKDIR", types.SimpleNamespace(value="run"))
    monkeypatch.setattr(main.jax.distributed, "is_initialized", lambda: several)
    return main.main(["main"])

  return call


@pytest.fixture
def ended(monkeypatch):
  """Codes with which the process ended at once."""
  codes = []

  def end(code):
    codes.append(code)
    raise KeyboardInterrupt  # Nothing comes after it.

  monkeypatch.setattr(main.os, "_exit", end)
  return codes


def test_alone_a_failure_returns_its_code(run, ended, capsys):
  assert run("dance", several=False) == 1
  assert "error: job is 'dance'" in capsys.readouterr().err
  assert not ended


def test_a_process_that_failed_does_not_wait_for_the_others(
    run, ended, capsys, monkeypatch
):
  with pytest.raises(KeyboardInterrupt):
    run("dance", several=True)
  assert "error: job is 'dance'" in capsys.readouterr().err

  def broken(_):
    raise RuntimeError("a bug")

  monkeypatch.setattr(main, "check_local", broken)
  with pytest.raises(KeyboardInterrupt):
    run("eval", several=True)
  assert "RuntimeError: a bug" in capsys.readouterr().err
  assert ended == [1, 1]
  with pytest.raises(RuntimeError):
    run("eval", several=False)
