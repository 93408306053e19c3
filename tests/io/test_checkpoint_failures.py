"""Torn steps, full disks: what was saved before is always there."""

import errno
import resource
import threading

import numpy as np
import pytest

from spatialrl.io import checkpoint, steps
from spatialrl.io.checkpoint import Checkpointer, CheckpointError


def _names(directory):
  return sorted(int(path.name) for path in directory.iterdir())


def _tear(path, how):
  files = sorted((path / "arrays").rglob("*"))
  files = [file for file in files if file.is_file() and file.stat().st_size]
  if how == "no commit":
    (path / steps.COMMIT).unlink()
  elif how == "torn commit":
    (path / steps.COMMIT).write_text('{"step": 2, "fil')
  elif how == "no arrays":
    for file in files:
      file.unlink()
  elif how == "missing":
    files[-1].unlink()
  else:
    files[-1].write_bytes(files[-1].read_bytes()[:-1])


@pytest.mark.parametrize(
  "how", ["no commit", "torn commit", "no arrays", "missing", "truncated"]
)
def test_a_torn_step_is_skipped_by_name(tmp_path, caplog, how):
  state = {"a": np.arange(3.0)}
  with Checkpointer(tmp_path, keep_last=3) as saver:
    for step in range(3):
      saver.save(step, state, {})
  _tear(tmp_path / "00000002", how)
  with Checkpointer(tmp_path, keep_last=3) as saver:
    assert saver.latest() == 1
    assert f"{tmp_path}/00000002 is not whole" in caplog.text
    assert (saver.restore(1, state)["a"] == state["a"]).all()
    with pytest.raises(CheckpointError, match="00000002 is not whole"):
      saver.restore(2, state)
    with pytest.raises(CheckpointError, match="00000009 .* does not exist"):
      saver.restore(9, state)
    saver.save(2, state, {"again": True})
    assert saver.latest() == 2
    assert saver.metadata(2) == {"again": True}


def test_what_was_never_whole_is_swept_by_the_next_save(tmp_path):
  with Checkpointer(tmp_path, keep_last=3) as saver:
    for step in range(3):
      saver.save(step, {"a": np.ones(3)}, {}, block=True)
    (tmp_path / "00000001" / steps.COMMIT).unlink()
    (tmp_path / "00000002" / "again.orbax-checkpoint-tmp" / "d").mkdir(
      parents=True
    )
    (tmp_path / "00000002" / f".{steps.COMMIT}.1.tmp").write_text("{")
    (tmp_path / "notes").mkdir()
    saver.save(3, {"a": np.ones(3)}, {}, block=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["00000000", "00000002", "00000003", "notes"]
    assert len(list((tmp_path / "00000002").iterdir())) == 2


def test_a_save_that_cannot_begin_is_one_sentence(tmp_path):
  with Checkpointer(tmp_path, keep_last=1) as saver:
    saver.save(1, {"a": np.ones(3)}, {}, block=True)
    (tmp_path / "00000002").write_text("x")
    with pytest.raises(CheckpointError, match=r"was not saved \(Not a dir"):
      saver.save(2, {"a": np.ones(3)}, {})
    assert saver.latest() == 1


def test_damage_that_keeps_the_size_fails_loudly(tmp_path):
  state = {"a": np.random.default_rng(0).random(1000)}
  with Checkpointer(tmp_path, keep_last=1) as saver:
    saver.save(1, state, {}, block=True)
    files = (tmp_path / "00000001").rglob("*")
    for file in files:
      if file.is_file() and file.name not in (steps.COMMIT, "_METADATA"):
        file.write_bytes(b"\x07" * file.stat().st_size)
    with pytest.raises(CheckpointError, match="00000001/arrays cannot be read"):
      saver.restore(1, state)


@pytest.fixture
def small_files():
  """Returns a switch: while on, no file may grow over 64 KB (EFBIG)."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def switch(on):
    limit = 64 * 1024 if on else soft
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

  yield switch
  switch(False)


def test_a_write_that_fails_keeps_the_older_checkpoints(tmp_path, small_files):
  small = {"a": np.arange(3.0)}
  big = {"a": np.random.default_rng(0).random(100_000)}
  with Checkpointer(tmp_path, keep_last=1) as saver:
    saver.save(1, small, {}, block=True)
    small_files(True)
    saver.save(2, big, {})
    with pytest.raises(
      CheckpointError, match=r"00000002 was not saved \(File too large\); the "
    ):
      saver.wait()
    small_files(False)
    saver.wait()  # Reported once.
    assert saver.latest() == 1
    assert (saver.restore(1, small)["a"] == small["a"]).all()
    saver.save(3, big, {}, block=True)
    assert (saver.restore(3, big)["a"] == big["a"]).all()
    assert _names(tmp_path) == [3]


def test_a_full_disk_at_the_commit_keeps_the_older_one(tmp_path, monkeypatch):
  state = {"a": np.arange(3.0)}
  with Checkpointer(tmp_path, keep_last=1) as saver:
    saver.save(1, state, {}, block=True)

    def full(*_, **__):
      raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.workdir, "write_json", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
      saver.save(2, state, {}, block=True)
    assert _names(tmp_path) == [1]
    # The failed save of a step that exists leaves it as it was.
    with pytest.raises(CheckpointError, match="No space left on device"):
      saver.save(1, {"a": np.zeros(3)}, {}, block=True)
    assert (saver.restore(1, state)["a"] == state["a"]).all()


def test_a_failure_surfaces_at_the_next_save_and_at_close(
  tmp_path, monkeypatch
):
  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(checkpoint.workdir, "write_json", full)
  saver = Checkpointer(tmp_path, keep_last=1)
  saver.save(1, {"a": np.ones(1)}, {})
  with pytest.raises(CheckpointError, match="00000001 was not saved"):
    saver.save(2, {"a": np.ones(1)}, {})
  saver.save(3, {"a": np.ones(1)}, {})
  with pytest.raises(CheckpointError, match="00000003 was not saved"):
    saver.close()
  assert not [t for t in threading.enumerate() if t.name == "checkpoint_0"]


def test_a_directory_that_cannot_be_written_fails_at_construction(read_only):
  with pytest.raises(OSError, match="^cannot write in .*: Permission denied$"):
    Checkpointer(read_only, keep_last=1)
