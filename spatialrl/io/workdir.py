"""The directory of one run: created, checked, and stamped with its config."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess

import jax
from absl import logging
from etils import epath

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# A run may go on for longer, on other devices, and be looked at.
_MAY_DIFFER = ("steps", "mesh", "profile_steps")


def prepare(workdir, config):
  """Creates `workdir` and writes `config.json` in it, or checks the one there.

  The file holds the resolved `config`, the `versions` of what computes the
  numbers, and the git `revision` (null where there is no git). When a run is
  resumed, other versions or another revision are logged as a warning, and only
  the config is brought up to date: `steps`, `mesh` and `profile_steps` may
  change. Of several processes the first writes.

  Args:
    workdir: a local or mounted directory, created with its parents.
    config: `ml_collections.ConfigDict` or dict of JSON values and tuples.

  Returns:
    `workdir` as an absolute `pathlib.Path`.

  Raises:
    OSError: the directory cannot be written, in one sentence.
    ValueError: the directory belongs to a run with another config; the
      sentence names the first fields that differ.
  """
  workdir, first, stamp = _look(workdir, config)
  check_writable(workdir)
  for name in ("versions", "revision"):
    if first and first[name] != stamp[name]:
      logging.warning(
        "%s was started with %s %s and goes on with %s",
        *(workdir, name, first[name], stamp[name]),
      )
  if first:
    stamp = {**first, "config": stamp["config"]}
  if jax.process_index() == 0:
    write_json(workdir / "config.json", stamp)
  return workdir


def check(workdir, config):
  """Refuses what `prepare` would, and leaves nothing behind.

  Returns:
    `workdir` as an absolute `pathlib.Path`; it need not exist.

  Raises:
    OSError, ValueError: see `prepare`.
  """
  workdir, _, _ = _look(workdir, config)
  check_writable(next(p for p in (workdir, *workdir.parents) if p.exists()))
  return workdir


def _look(workdir, config):
  """(absolute path, what its config.json holds or None, what it should)."""
  check_local(workdir)
  workdir = pathlib.Path(workdir).expanduser().absolute()
  path = workdir / "config.json"
  resolved = resolve(config)
  stamp = {
    "config": resolved,
    "versions": _versions(),
    "revision": git_revision(),
  }
  if not path.exists():
    return workdir, None, stamp
  first = _read_stamp(path)
  differ = differences(
    _without_free(first["config"]), _without_free(resolved),
    "config.{} was {}, is {}",
  )
  if differ:
    raise ValueError(
      f"{workdir} holds a run with another config: {differ}; resume with the"
      " same config or use another workdir"
    )
  return workdir, first, stamp


def check_local(workdir):
  """Raises ValueError for a bucket, where no file can be appended to."""
  if "://" in str(workdir):
    raise ValueError(
      f"workdir is {str(workdir)!r}; give a local or mounted directory:"
      " tpu/run.sh takes a bucket and mirrors it, gcsfuse mounts one."
    )


def resolve(config):
  """A ConfigDict or dict as JSON keeps it: references followed, lists.

  Raises:
    ValueError: it holds what JSON cannot.
  """
  return json.loads(json.dumps(_plain(config), default=_encode))


def check_writable(directory):
  """Creates `directory` and writes a byte in it; OSError in one sentence."""
  directory = epath.Path(directory)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".write-test-{os.getpid()}"
    probe.write_text("x")
    probe.unlink()
  except OSError as error:
    raise OSError(
      f"cannot write in {directory}: {error.strerror or error}"
    ) from error


@contextlib.contextmanager
def naming(path):
  """Lets an OSError of the block, a full disk for one, name the file."""
  try:
    yield
  except OSError as error:
    raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path, value, *, indent=2):
  """Writes `value` as JSON; a reader sees the old file or the new, whole.

  Args:
    path: file to write, local or remote; its directory exists.
    value: strict JSON; NaN and infinities raise ValueError.
    indent: spaces a level, or None for one line.
  """
  path = epath.Path(path)
  text = json.dumps(value, indent=indent, sort_keys=True, allow_nan=False)
  temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
  with naming(path):
    try:
      temporary.write_text(text + "\n")
      temporary.replace(path)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise


def git_revision():
  """Returns the commit of this source, "+dirty" if edited, None without git."""
  here = pathlib.Path(__file__).parent

  def git(*arguments):
    return subprocess.run(
      ("git", "-C", str(here), *arguments),
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    ).stdout.strip()

  try:
    # An installed copy may sit inside some other repository's tree.
    if not git("ls-files", "--", __file__):
      return None
    dirty = git("status", "--porcelain", "--untracked-files=no", "--", "..")
    return git("rev-parse", "HEAD") + ("+dirty" if dirty else "")
  except (OSError, subprocess.SubprocessError):
    return None


def _versions():
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {**versions, "python": platform.python_version()}


def _plain(config):
  """A ConfigDict with its references followed, or the dict itself."""
  return config.to_dict() if hasattr(config, "to_dict") else config


def _encode(value):
  raise ValueError(
    f"config holds {value!r} of type {type(value).__name__}; "
    "allowed are numbers, strings, booleans, None, tuples, lists and dicts"
  )


def _read_stamp(path):
  try:
    stamp = json.loads(path.read_text())
    stamp["config"].keys(), stamp["versions"], stamp["revision"]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{path} is not the config of a run; move it away or use another workdir"
    ) from error
  return stamp


def differences(before, now, form, *, shown=3):
  """Says in which fields two configs differ, or returns "".

  Args:
    before: dict of JSON values, with dicts inside.
    now: the other.
    form: takes name, value before and value now, as "{} was {}, is {}" does.
    shown: fields that are named; of the rest only the number is told.
  """
  before, now = dict(_fields(before)), dict(_fields(now))
  absent = "absent"
  differ = [
    form.format(name, before.get(name, absent), now.get(name, absent))
    for name in sorted(before.keys() | now.keys())
    if before.get(name, absent) != now.get(name, absent)
  ]
  more = f" (and {len(differ) - shown} more)" if len(differ) > shown else ""
  return "; ".join(differ[:shown]) + more


def _without_free(config):
  return {name: config[name] for name in config if name not in _MAY_DIFFER}


def _fields(tree, prefix=""):
  """Yields (dotted name, JSON text) of each leaf; empty dicts are leaves."""
  for name, value in tree.items():
    if isinstance(value, dict) and value:
      yield from _fields(value, f"{prefix}{name}.")
    else:
      yield prefix + name, json.dumps(value)
