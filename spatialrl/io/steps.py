"""A directory of checkpoints: one directory per step, and when it is whole.

A step is whole when its `commit.json` is there and every file has the size it
lists. That file is written last, and holds what must be known before any array
is read: path, dtype and shape of each leaf, the metadata and the score.
"""

import json
import os
import re

from etils import epath

from spatialrl.io import workdir

COMMIT = "commit.json"


class CheckpointError(OSError):
  """A checkpoint could not be written or read; the message says which."""


def absolute(directory):
  return epath.Path(directory).expanduser().resolve()


def path_of(directory, step):
  return directory / f"{step:08d}"


def paths(directory):
  """Directories of steps, whole or not, oldest first."""
  if not directory.is_dir():
    return []
  found = [path for path in directory.iterdir() if path.name.isdigit()]
  return sorted(found, key=lambda path: int(path.name))


def free_name(path):
  """Returns a name for the arrays of a step that its commit does not use."""
  try:
    return "again" if read_commit(path)["arrays"] == "arrays" else "arrays"
  except CheckpointError:
    return "arrays"


def write_commit(path, commit):
  """Makes the step whole: `commit` and the files there are, written last."""
  commit = {**commit, "files": _sizes(path, commit)}
  workdir.write_json(path / COMMIT, commit, indent=None)


def read_commit(path):
  """Returns what `commit.json` says; CheckpointError if the step is damaged."""
  try:
    commit = json.loads((path / COMMIT).read_text())
    expected, found = commit["files"].items(), _sizes(path, commit)
  except FileNotFoundError:
    what = "it was never finished" if path.exists() else "it does not exist"
    raise CheckpointError(f"checkpoint {path} is not whole: {what}") from None
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise CheckpointError(
      f"checkpoint {path} is not whole: {COMMIT} cannot be read"
    ) from error
  for name, size in expected:
    if found.get(name) != size:
      raise CheckpointError(
        f"checkpoint {path} is not whole: {name} should have {size} bytes "
        f"and {f'has {found[name]}' if name in found else 'is missing'}"
      )
  return commit


def _sizes(path, commit):
  """Bytes of every file that Orbax wrote, by path inside the step."""
  files = _files(path / commit["arrays"])
  return {str(file.relative_to(path)): file.stat().length for file in files}


def _files(directory):
  if directory.is_dir():
    for path in directory.iterdir():
      yield from _files(path) if path.is_dir() else (path,)


def remove(path):
  """Removes a step so that, killed half-way, it does not look whole."""
  (path / COMMIT).unlink(missing_ok=True)
  path.rmtree(missing_ok=True)


def remove_uncommitted(path):
  """Removes what a killed or failed save left in or of a step."""
  try:
    keep = json.loads((path / COMMIT).read_text())["arrays"]
  except FileNotFoundError:
    path.rmtree(missing_ok=True)
    return
  except (ValueError, LookupError, TypeError):
    return  # Damaged after its commit: left for a person to look at.
  for other in path.iterdir():
    if other.name not in (COMMIT, keep):
      other.rmtree() if other.is_dir() else other.unlink()


def reason(error):
  """The system's own words if it has any, else the start of the message."""
  number = re.search(r"os_error_code='(\d+)'", str(error))
  if number:
    return os.strerror(int(number[1]))
  first = str(error).split(" [tensorstore_spec")[0].strip().splitlines()
  return getattr(error, "strerror", None) or (first or [repr(error)])[0][:300]
