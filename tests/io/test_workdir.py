"""A run's directory: stamped once, refused to another config."""

import json
import os
import pathlib

import ml_collections
import pytest

from spatialrl.io import workdir


def _config():
  return ml_collections.ConfigDict(
    {"steps": 10, "seed": 0, "sizes": (4, 5), "model": {"width": 8, "lr": 1e-3}}
  )


def test_config_versions_and_revision_are_written(tmp_path):
  path = workdir.prepare(tmp_path / "a" / "run", _config())
  stamp = json.loads((path / "config.json").read_text())
  assert stamp["config"] == {
    "steps": 10,
    "seed": 0,
    "sizes": [4, 5],
    "model": {"width": 8, "lr": 1e-3},
  }
  assert set(stamp["versions"]) == {
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "python")
  }
  assert stamp["revision"] == workdir.git_revision()
  assert [p.name for p in path.iterdir()] == ["config.json"]


def test_same_config_resumes_and_may_run_for_more_steps(tmp_path):
  workdir.prepare(tmp_path, _config())
  config = _config()
  config.steps = 20
  workdir.prepare(tmp_path, config)
  stamp = json.loads((tmp_path / "config.json").read_text())
  assert stamp["config"]["steps"] == 20


def test_other_config_is_refused_by_naming_the_fields(tmp_path):
  workdir.prepare(tmp_path, _config())
  before = (tmp_path / "config.json").read_text()
  config = _config()
  config.model.lr = 2e-3
  config.model.depth = 3
  with pytest.raises(ValueError) as caught:
    workdir.prepare(tmp_path, config)
  message = str(caught.value)
  assert "config.model.lr was 0.001, is 0.002" in message
  assert "config.model.depth was absent, is 3" in message
  assert str(tmp_path) in message
  assert "seed" not in message
  assert (tmp_path / "config.json").read_text() == before


def test_only_the_top_level_steps_may_differ(tmp_path):
  workdir.prepare(tmp_path, {"sampler": {"steps": 4}})
  with pytest.raises(ValueError, match=r"config\.sampler\.steps was 4, is 5"):
    workdir.prepare(tmp_path, {"sampler": {"steps": 5}})


def test_other_versions_are_logged_and_the_first_kept(tmp_path, caplog):
  workdir.prepare(tmp_path, _config())
  path = tmp_path / "config.json"
  stamp = json.loads(path.read_text())
  stamp["versions"]["jax"] = "0.0.1"
  path.write_text(json.dumps(stamp))
  workdir.prepare(tmp_path, _config())
  workdir.check(tmp_path, _config())
  assert caplog.text.count("0.0.1") == 1
  assert json.loads(path.read_text())["versions"]["jax"] == "0.0.1"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 3}'])
def test_a_foreign_config_file_is_refused(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match="is not the config of a run"):
    workdir.prepare(tmp_path, _config())


def test_what_json_cannot_hold_is_refused(tmp_path):
  with pytest.raises(ValueError, match="config holds .* of type PurePosixPath"):
    workdir.prepare(tmp_path, {"path": pathlib.PurePosixPath("/")})


def test_a_directory_under_a_file_is_one_sentence(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(OSError, match="^cannot write in .*file/run: Not a dir"):
    workdir.prepare(tmp_path / "file" / "run", _config())


def test_a_check_leaves_nothing_behind(tmp_path):
  (tmp_path / "file").touch()
  before = list(tmp_path.iterdir())
  path = workdir.check(tmp_path / "a" / "run", _config())
  assert path == tmp_path / "a" / "run"
  with pytest.raises(OSError, match="^cannot write in .*file"):
    workdir.check(tmp_path / "file" / "run", _config())
  assert list(tmp_path.iterdir()) == before


def test_a_read_only_directory_is_one_sentence(read_only, monkeypatch):
  # Whoever `read_only` turns root into may not be let into the environment.
  monkeypatch.setattr(workdir, "_versions", dict)
  with pytest.raises(OSError, match="^cannot write in .*: Permission denied$"):
    workdir.prepare(read_only, _config())


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "a.json"
  workdir.write_json(path, {"a": 1})
  with pytest.raises(ValueError):
    workdir.write_json(path, {"a": float("nan")})

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  monkeypatch.setattr(pathlib.Path, "replace", full)
  with pytest.raises(OSError, match="a.json: No space left"):
    workdir.write_json(path, {"a": 2})
  assert json.loads(path.read_text()) == {"a": 1}
  assert list(tmp_path.iterdir()) == [path]


def test_revision_is_null_without_git(monkeypatch):
  monkeypatch.setenv("PATH", "")
  assert workdir.git_revision() is None
