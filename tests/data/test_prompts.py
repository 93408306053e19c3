"""Prompt files, and prompts as the arrays of a policy."""

import json

import numpy as np
import pytest

from spatialrl.data import prompts
from spatialrl.data.cache import Writer


def test_text_and_geneval_records_are_read(tmp_path):
  text = tmp_path / "prompts.txt"
  text.write_text("a red cat\n\n  a blue dog \n")
  assert prompts.read_prompts(text) == ["a red cat", "a blue dog"]
  assert prompts.read_prompts(text, 1) == ["a red cat"]
  records = [{"tag": "position", "prompt": "a cup"}, {"prompt": "a hat"}]
  lines = tmp_path / "metadata.jsonl"
  lines.write_text("\n".join(map(json.dumps, records)))
  assert prompts.read_records(lines) == records


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("none.txt", None, r"none\.txt' cannot be read"),
    ("empty.txt", "\n \n", "is empty"),
    ("latin.txt", b"caf\xe9", "cannot be read"),
    ("torn.jsonl", '{"prompt": "a"}\n{"prom', r"torn\.jsonl:2: not JSON"),
    ("list.jsonl", "[1]", r"list\.jsonl:1: .* is no JSON object"),
    ("other.jsonl", '{"text": "a"}', r"other\.jsonl:1: field 'prompt' is None"),
    ("blank.jsonl", '\n{"prompt": " "}', r"blank\.jsonl:2: field 'prompt'"),
    ("short.txt", "one", "has 1 prompts; the config asks for 2"),
  ],
)
def test_a_file_of_no_prompts_is_named_with_its_line(
  tmp_path, name, content, words
):
  path = tmp_path / name
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif content is not None:
    path.write_text(content)
  with pytest.raises(ValueError, match=words) as caught:
    prompts.read_prompts(path, 2)
  assert "\n" not in str(caught.value)


def test_states_follow_the_prompts_wherever_they_are_stored(tmp_path):
  writer = Writer(tmp_path, {})
  text = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
  pooled = np.arange(6, dtype=np.float32).reshape(3, 2)
  with writer.locked():
    writer.add(["a", "b"], text[:2], pooled[:2])
    writer.add(["c"], text[2:], pooled[2:])
  read = prompts.States(tmp_path)
  found = read(["c", "a", "a", "c"])
  np.testing.assert_array_equal(found[0], text[[2, 0, 0, 2]])
  np.testing.assert_array_equal(found[1], pooled[[2, 0, 0, 2]])
  with pytest.raises(ValueError, match="'d' is not in the cache"):
    read(["a", "d"])


def test_tokens_are_those_of_the_embedded_world():
  ids, mask = prompts.Tokens(6)(["a red circle left of a blue square"])
  assert ids.shape == mask.shape == (1, 6)
  assert mask.all() and (ids > 0).all()
