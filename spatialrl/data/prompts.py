"""Prompt lists from files, and what a policy's `encode` takes of prompts.

A reader is called with a list of B prompts and returns the arrays, each with a
leading axis B, that follow the weights in `policy.encode`.
"""

import json
import pathlib

from spatialrl.data import tokenizers
from spatialrl.data.cache import Cache


class Tokens:
  """Reads prompts for the embedded policy: ids i32[B, L] and mask bool[B, L].

  Attributes:
    has_ids: whether the first array is token ids.
  """

  has_ids = True

  def __init__(self, max_tokens):
    """Loads the embedded tokenizer; `max_tokens` is L."""
    self._tokenizer, self._max_tokens = tokenizers.load(), max_tokens

  def __call__(self, prompts):
    return tokenizers.encode(self._tokenizer, prompts, self._max_tokens)


class States:
  """Reads encoded prompts from a cache: text [B, L, D] and pooled [B, P]."""

  has_ids = False

  def __init__(self, folder):
    """Opens the `cache.Cache` in `folder`."""
    self._cache = Cache(folder)

  def __call__(self, prompts):
    # A group repeats its prompt; each is read from the disk once.
    rows = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    text, pooled = self._cache.lookup(list(rows))
    order = [rows[prompt] for prompt in prompts]
    return text[order], pooled[order]


def read_records(path):
  """The records of a prompt file.

  Args:
    path: with the ending .jsonl an object a line whose field "prompt" counts,
      such as the metadata of GenEval; else plain text, a prompt a line. Empty
      lines are skipped.

  Returns:
    list of dict, each with "prompt", a str.

  Raises:
    ValueError: if the file is missing or has no prompt, or a line is no record;
      names file and line.
  """
  records = []
  for where, record in read_lines(path):
    if isinstance(record, str):
      record = {"prompt": record}
    check_text(where, record, "prompt")
    records.append(record)
  return records


def read_prompts(path, count=None):
  """The prompts of a file, see `read_records`.

  Args:
    path: of the file.
    count: how many of its first prompts to take; None for all.

  Returns:
    list of str.

  Raises:
    ValueError: see `read_records`; or the file has fewer than `count`.
  """
  found = [record["prompt"] for record in read_records(path)]
  if count is not None and len(found) < count:
    raise ValueError(
        f"prompt file {str(path)!r} has {len(found)} prompts; the config asks"
        f" for {count}."
    )
  return found[:count]


def read_lines(path):
  """Lines of a text file or objects of a JSONL file, with where they stand.

  Args:
    path: of the file, UTF-8; its ending .jsonl tells them apart.

  Returns:
    list of ("file:line", str or dict), empty lines left out.

  Raises:
    ValueError: if the file cannot be read, is empty, or a line is no object.
  """
  path = pathlib.Path(path)
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"file {str(path)!r} cannot be read ({error}).") from error
  found = [
      (f"{path}:{number}", line.strip())
      for number, line in enumerate(lines, 1)
      if line.strip()
  ]
  if not found:
    raise ValueError(f"file {str(path)!r} is empty.")
  if path.suffix != ".jsonl":
    return found
  return [(where, _object(where, line)) for where, line in found]


def check_text(where, record, field):
  """Raises ValueError unless a field of a record is a str with something in it.
  """
  value = record.get(field)
  if not isinstance(value, str) or not value.strip():
    raise ValueError(
        f"{where}: field {field!r} is {value!r}; a text that is not empty is"
        " needed."
    )


def _object(where, line):
  try:
    record = json.loads(line)
  except ValueError as error:
    raise ValueError(f"{where}: not JSON ({error}).") from error
  if not isinstance(record, dict):
    raise ValueError(f"{where}: {line[:40]!r} is no JSON object.")
  return record
