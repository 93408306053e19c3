"""A world in which the scripts of tpu/ meet a gcloud that plays scenarios."""

import os
import pathlib
import shlex
import subprocess

TPU = pathlib.Path(__file__).parents[2] / "tpu"
_FAKE = pathlib.Path(__file__).with_name("fake_gcloud.sh")


class World:
  """Files that say what the fake gcloud answers, and what it was asked."""

  def __init__(self, root):
    self.root = root
    self.scripts = TPU
    (root / "bin").mkdir()
    (root / "bin" / "gcloud").symlink_to(_FAKE)
    self.set(calls="", request="ABSENT", machines="ABSENT", workers="1")
    # Those of a user's shell are none of the tests' business.
    self.environment = {
      name: value
      for name, value in os.environ.items()
      if not name.startswith(("TPU_", "GIT_")) and name != "DRY_RUN"
    } | {
      "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
      "WORLD": str(root),
      "TPU_REPO": "https://example.com/spatialrl.git",
      "TPU_POLL_SECONDS": "0.01",
      "TPU_QUERY_SECONDS": "5",
    }

  def set(self, **files):
    for name, text in files.items():
      (self.root / name).write_text(text + "\n" if text else "")

  def exists(self, **states):
    """There is a slice already."""
    self.set(request="ACTIVE", machines="READY", **states)

  def run(self, script, *arguments, code=0, stdin="", **environment):
    """Runs tpu/SCRIPT.sh, checks its exit code, returns its two outputs."""
    done = subprocess.run(
      [str(self.scripts / f"{script}.sh"), *arguments],
      env=self.environment | environment,
      input=stdin,
      capture_output=True,
      text=True,
      timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr

  def calls(self, *words):
    """Argument lists of the calls in which all `words` occur, in order."""
    lines = (self.root / "calls").read_text().splitlines()
    calls = [shlex.split(line) for line in lines]
    return [c for c in calls if all(word in " ".join(c) for word in words)]
