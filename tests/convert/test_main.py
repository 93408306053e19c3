"""The commands of python -m spatialrl.convert."""

import json
import shutil

import numpy as np
import pytest

from spatialrl.convert import folder, lora
from spatialrl.convert.__main__ import main
from spatialrl.io.checkpoint import Checkpointer, load_params

from .conftest import reference

IDS = np.array([1, 4, 2])


@pytest.fixture
def base(write, tensors):
  return write(tensors, files=2)


@pytest.fixture
def workdir(tmp_path, rng):
  """A run that trained adapters of the toy's head."""
  head = {
    "a": np.float32(rng.standard_normal((4, 2))),
    "b": np.float32(rng.standard_normal((2, 5))),
  }
  path = tmp_path / "run"
  path.mkdir()
  fields = {"lora": {"rank": 2, "alpha": 3.0}}
  (path / "config.json").write_text(json.dumps({"config": fields}))
  mean = {**head, "b": head["b"] / 2}
  state = {"params": {"head": head}, "ema": {"head": mean}}
  with Checkpointer(path / "checkpoints", keep_last=1) as checkpointer:
    checkpointer.save(7, state, {}, block=True)
  return path


@pytest.fixture
def adapter(base, workdir, tmp_path):
  out = tmp_path / "lora"
  command = ["export-lora", workdir, out, "--base", base, "--format", "peft"]
  assert main(map(str, command)) == 0
  return out


def run(*args):
  return main([str(arg) for arg in args])


def test_inspect(base, adapter, capsys):
  assert run("inspect", base) == 0
  said = capsys.readouterr().out
  assert "Toy (toy)" in said and "261 parameters" in said
  assert "in 2 file(s)" in said
  assert run("inspect", adapter) == 0
  assert "rank 2, alpha 3.0" in capsys.readouterr().out


def test_inspect_a_pipeline(base, tmp_path, capsys):
  path = tmp_path / "pipeline"
  path.mkdir()
  index = {"_class_name": "P", "net": ["diffusers", "Toy"], "k": ["x", "Tok"]}
  (path / "model_index.json").write_text(json.dumps(index))
  shutil.copytree(base, path / "net")
  assert run("inspect", path) == 0
  said = capsys.readouterr().out
  assert "P, 1 networks" in said and "ours: k" in said and "Toy (toy)" in said
  assert run("import", path, tmp_path / "out") == 0
  assert load_params(tmp_path / "out" / "net")["words"].shape == (6, 4)


def test_import(base, tensors, tmp_path, capsys):
  assert run("import", base, tmp_path / "out", "--dtype", "bfloat16") == 0
  assert "load_params" in capsys.readouterr().out
  words = load_params(tmp_path / "out")["words"]
  assert words.dtype == "bfloat16"
  np.testing.assert_allclose(words, tensors["words.weight"], rtol=8e-3)


@pytest.mark.parametrize(("field", "factor"), [("ema", 0.5), ("params", 1.0)])
def test_export_lora(base, workdir, tmp_path, field, factor):
  out = tmp_path / "exported"
  command = ["--base", base, "--format", "peft", "--field", field]
  assert run("export-lora", workdir, out, *command) == 0
  pair = lora.read(out, folder.open_model(base))["head"]
  trained = load_params(workdir)["head"]
  np.testing.assert_array_equal(pair.a, trained["a"].T)
  np.testing.assert_array_equal(pair.b, factor * trained["b"].T)
  assert pair.scale == 1.5


def test_export_of_a_run_without_adapters(base, workdir, tmp_path, capsys):
  (workdir / "config.json").write_text('{"config": {"lora": {"rank": 0}}}')
  command = ["--base", base, "--format", "peft"]
  assert run("export-lora", workdir, tmp_path / "out", *command) == 1
  assert "has lora.rank 0" in capsys.readouterr().err


def test_merge_and_check(base, adapter, tensors, tmp_path, capsys):
  assert run("merge", base, adapter, tmp_path / "merged") == 0
  pairs = lora.read(adapter, folder.open_model(base))
  weights = tensors | {
    "head.weight": tensors["head.weight"] + pairs["head"].delta()
  }
  np.savez(tmp_path / "io.npz", ids=IDS, logits=reference(weights, IDS))
  assert run("check", tmp_path / "merged", "--io", tmp_path / "io.npz") == 0
  said = capsys.readouterr().out
  assert "1 of 1 within 0.0002" in said and "not ours: ids" in said
  assert run("check", base, "--io", tmp_path / "io.npz") == 1
  assert "BEYOND" in capsys.readouterr().out


def test_check_a_lora_beside_its_base(base, adapter, tensors, tmp_path, capsys):
  plain = reference(tensors, IDS)
  np.savez(base / "io.npz", ids=IDS, logits=plain)
  pairs = lora.read(adapter, folder.open_model(base))

  def logits(weight):
    delta = weight * pairs["head"].delta()
    return reference(
      tensors | {"head.weight": tensors["head.weight"] + delta}, IDS
    )

  np.savez(
    adapter / "io.npz",
    logits=logits(1),
    logits_half=logits(0.5),
    logits_base=plain,
    rank=2,
    alpha=3.0,
  )
  # adapter_config.json says where the base is.
  assert run("check", adapter, "--io", adapter / "io.npz") == 0
  said = capsys.readouterr().out
  assert "5 of 5 within" in said and f"taken from {base / 'io.npz'}" in said


def test_check_without_numbers(base, adapter, capsys):
  assert run("check", base) == run("check", adapter) == 0
  assert capsys.readouterr().out.count("numbers were not compared") == 2


def test_check_fails_where_nothing_can_be_compared(base, tmp_path, capsys):
  np.savez(tmp_path / "io.npz", ids=IDS)
  assert run("check", base, "--io", tmp_path / "io.npz") == 1
  assert "nothing in the file is an output" in capsys.readouterr().err
  np.savez(tmp_path / "io.npz", logits=IDS)
  assert run("check", base, "--io", tmp_path / "io.npz") == 1
  assert "input 'ids' of Toy is missing" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [np.nan, 1.0])
def test_check_fails_on_nan_and_on_other_shapes(base, tensors, tmp_path, wrong):
  logits = np.full_like(reference(tensors, IDS), wrong)
  shape = logits if np.isnan(wrong) else logits[:2]
  file = tmp_path / "io.npz"
  np.savez(file, ids=IDS, logits=shape)
  assert run("check", base, "--io", file, "--tolerance", 1e9) == 1


def test_a_lora_whose_base_is_not_there(adapter, capsys):
  file = adapter / "adapter_config.json"
  settings = json.loads(file.read_text()) | {"base_model_name_or_path": None}
  file.write_text(json.dumps(settings))
  assert run("check", adapter) == 1
  assert "give --base FOLDER" in capsys.readouterr().err


def test_errors_are_one_sentence(tmp_path, capsys):
  assert run("inspect", tmp_path / "absent") == 1
  assert capsys.readouterr().err.startswith("error: ")


def test_a_file_of_outputs_that_is_cut_short_is_named(base, tmp_path, capsys):
  file = tmp_path / "io.npz"
  np.savez(file, x=np.ones(100))
  for broken in (file.read_bytes()[:200], b"no arrays"):
    file.write_bytes(broken)
    assert run("check", base, "--io", file) == 1
    assert "io.npz is broken or no NPZ" in capsys.readouterr().err
