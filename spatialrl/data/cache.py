"""A folder of encoded prompts, so that no text encoder sits in memory.

`index.json` says what encoded it and which row of which shard each prompt has
(by its sha256); a shard is a safetensors file with `text` [N, L, D] and
`pooled` [N, P]. `encode.py` fills it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


class Cache:
  """A folder of encoded prompts, open for reading."""

  def __init__(self, folder):
    """Reads the index; ValueError if `folder` is no cache."""
    self._folder = pathlib.Path(folder)
    self._places = {
        key: (shard, row)
        for shard, keys in enumerate(_index(self._folder)["shards"])
        for row, key in enumerate(keys)
    }

  def __len__(self):
    return len(self._places)

  def lookup(self, prompts):
    """Encoded prompts, read from their shards row by row.

    Args:
      prompts: list of B str, at least one; any may be there repeatedly.

    Returns:
      (text [B, L, D], pooled [B, P]), numpy arrays of the cache's dtype.

    Raises:
      ValueError: names the first prompt that is absent, or a shard that cannot
        be read.
    """
    wanted = {}
    for i, prompt in enumerate(prompts):
      place = self._places.get(_hash(prompt))
      if place is None:
        raise ValueError(
            f"prompt {prompt!r} is not in the cache {str(self._folder)!r} of"
            f" {len(self)} prompts; encode it first."
        )
      wanted.setdefault(place[0], []).append((i, place[1]))
    found = [None] * len(prompts)
    for shard, rows in wanted.items():
      path = self._folder / _file(shard)
      try:
        with safe_open(path, framework="np") as file:
          text, pooled = file.get_slice("text"), file.get_slice("pooled")
          for i, row in rows:
            found[i] = text[row], pooled[row]
      except (OSError, SafetensorError) as error:
        raise ValueError(
            f"shard {str(path)!r} of the cache cannot be read ({error})."
        ) from error
    text, pooled = zip(*found, strict=True)
    return np.stack(text), np.stack(pooled)


class Writer:
  """A folder of encoded prompts that grows by whole shards.

  A process that is killed loses the shard it was at. Any number may look at a
  folder; one writes, inside `locked`.
  """

  def __init__(self, folder, settings):
    """Reads the index, if there is one.

    Args:
      folder: made by `locked` if need be.
      settings: dict of JSON values, what the arrays depend on besides prompts.

    Raises:
      ValueError: if the folder was made with other settings.
    """
    self._folder = pathlib.Path(folder)
    self._settings = settings
    self._locked = False
    self._read()

  def _read(self):
    self._shards = []
    if (self._folder / "index.json").exists():
      index = _index(self._folder)
      for name, value in self._settings.items():
        if index.get(name) != value:
          raise ValueError(
              f"cache {str(self._folder)!r} was made with {name}"
              f" {index.get(name)!r} and not {value!r}; use another folder."
          )
      self._shards = index["shards"]
    self._known = {key for keys in self._shards for key in keys}

  @contextlib.contextmanager
  def locked(self):
    """Keeps other writers out and knows what they have left.

    Raises:
      ValueError: another process is writing, or see `__init__`.
    """
    self._folder.mkdir(parents=True, exist_ok=True)
    with (self._folder / ".lock").open("a") as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise ValueError(
            f"cache {str(self._folder)!r} is being written by another process;"
            " wait for its end or use another folder."
        ) from error
      self._read()
      self._locked = True
      try:
        yield
      finally:
        self._locked = False

  def __contains__(self, prompt):
    return _hash(prompt) in self._known

  def add(self, prompts, text, pooled):
    """Writes one shard, inside `locked`.

    Args:
      prompts: list of N str, none of them there yet.
      text: [N, L, D].
      pooled: [N, P].
    """
    if not self._locked:
      raise RuntimeError("a shard can only be added inside `locked`.")
    keys = [_hash(prompt) for prompt in prompts]
    shard = self._folder / _file(len(self._shards))
    _replace(shard, lambda at: save_file({"text": text, "pooled": pooled}, at))
    self._shards.append(keys)
    self._known.update(keys)
    # The shard counts from here on; before, it would be written again.
    index = json.dumps({**self._settings, "shards": self._shards}, indent=1)
    _replace(self._folder / "index.json", lambda at: at.write_text(index))


def _index(folder):
  path = folder / "index.json"
  try:
    index = json.loads(path.read_text())
    index["shards"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
        f"{str(path)!r} is not the index of encoded prompts ({error!r})."
    ) from error
  return index


def _replace(path, write):
  """Lets `write` make the file `path`, which is there whole or not at all."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    write(temporary)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def _file(shard):
  return f"{shard:05d}.safetensors"


def _hash(prompt):
  return hashlib.sha256(prompt.encode()).hexdigest()
