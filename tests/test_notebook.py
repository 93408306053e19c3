"""The notebook: stored without outputs, and it runs on a run's workdir."""

import os
import pathlib
import subprocess
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "experiments" / "notebooks" / "checkpoint.ipynb"


def _read():
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  return notebook, [c for c in notebook.cells if c.cell_type == "code"]


def _outputs(cell):
  """{MIME type, "stdout" or "stderr": content} of what a cell left."""
  found = {}
  for output in cell.outputs:
    if output.output_type == "stream":
      found[output.name] = found.get(output.name, "") + output.text
    else:
      found |= output.data
  return found


def test_the_notebook_is_valid_and_has_no_outputs():
  notebook, cells = _read()
  nbformat.validate(notebook)
  assert [cell.outputs for cell in cells] == [[]] * len(cells)
  assert [cell.execution_count for cell in cells] == [None] * len(cells)
  assert "SPATIALRL_WORKDIR" in cells[0].source
  assert max(len(cell.source.splitlines()) for cell in cells) <= 15


@pytest.mark.slow
def test_the_notebook_shows_curves_and_samples_of_a_run(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("SPATIALRL_WORKDIR", str(tmp_path / "run"))
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  path = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))
  monkeypatch.setenv("PYTHONPATH", path)
  subprocess.run(
    [sys.executable, "-m", "spatialrl.main"]
    + ["--config", "configs/scenes_base.py:tiny"]
    + ["--workdir", str(tmp_path / "run")],
    cwd=ROOT,
    check=True,
  )
  before = _files(tmp_path / "run")
  notebook, cells = _read()
  nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(NOTEBOOK.parent)}},
  ).execute()
  _, opened, curves, samples, numbers = map(_outputs, cells)
  assert opened["stdout"] == "job pretrain, weights of: step 2, step 4\n"
  assert curves["image/png"] and samples["image/png"]
  lines = numbers["stdout"].splitlines()
  assert [line[:6] for line in lines] == ["step 2", "step 4"]
  assert all("all_relations 0.0" in line for line in lines)
  assert _files(tmp_path / "run") == before  # It was only read.


def _files(directory):
  return {
    path: path.stat().st_mtime_ns
    for path in directory.rglob("*")
    if path.is_file()
  }
