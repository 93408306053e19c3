"""The word-level tokenizer: complete, strict, loaded from a file alone."""

import json
import socket

import numpy as np
import pytest

from spatialrl.data import scenes, tokenizers
from spatialrl.scenes import grammar


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizers.load()


def test_the_committed_file_is_what_build_makes():
  committed = json.loads(tokenizers.ASSET.read_text())
  assert committed == json.loads(tokenizers.build())


def test_loading_opens_no_connection(monkeypatch):
  def refuse(*_):
    raise AssertionError("a connection was opened")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  assert tokenizers.load().pad_token_id == 0


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(ValueError, match="none.json"):
    tokenizers.load(tmp_path / "none.json")


def test_padding_is_0_and_every_word_has_a_token(tokenizer):
  assert tokenizer.get_vocab() == {
      word: i for i, word in enumerate(("[PAD]", *grammar.words()))
  }


def test_articles_are_dropped_and_a_comma_is_a_token(tokenizer):
  prompt = "a red cross left of an orange circle, two small blue squares"
  ids, mask = tokenizers.encode(tokenizer, [prompt], 16)
  assert ids.dtype == np.int32 and mask.dtype == bool
  assert tokenizer.convert_ids_to_tokens(ids[0][mask[0]].tolist()) == [
      "red", "cross", "left", "of", "orange", "circle", ",",
      "two", "small", "blue", "squares",
  ]
  np.testing.assert_array_equal(mask[0], np.arange(16) < 11)
  assert not ids[0, 11:].any()


def test_distinct_prompts_have_distinct_tokens(tokenizer):
  made = scenes.prompts(0, 300, relations=(1, 2, 6))
  ids, mask = tokenizers.encode(tokenizer, made, 48)
  assert len({row.tobytes() for row in ids}) == 300
  assert mask.sum(1).min() > 4


def test_an_empty_prompt_is_all_padding(tokenizer):
  ids, mask = tokenizers.encode(tokenizer, ["", "a red cross"], 4)
  assert not mask[0].any() and not ids[0].any()
  assert mask[1].tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "word,named", [("potato", "potato"), ("Red", "Red"), ("[PAD]", "[")]
)
def test_an_unknown_word_is_an_error(tokenizer, word, named):
  prompt = f"a {word} cross"
  with pytest.raises(ValueError) as error:
    tokenizers.encode(tokenizer, ["a red cross", prompt], 8)
  assert f"{prompt!r} has the word {named!r}" in str(error.value)


def test_a_long_prompt_is_an_error(tokenizer):
  prompt = "a red cross left of a blue cross"
  assert tokenizers.encode(tokenizer, [prompt], 6)[1].all()
  with pytest.raises(ValueError, match=r"6 tokens; prompts\.max_tokens .* 5"):
    tokenizers.encode(tokenizer, [prompt], 5)


def test_words_have_kinds(tokenizer):
  table = tokenizers.word_table(tokenizer, ("nouns", "colours"))
  ids, mask = tokenizers.encode(
    tokenizer, ["a red circle left of two blue squares"], 8
  )
  # red circle left of two blue squares
  np.testing.assert_array_equal(
    table[ids[0]] & mask[0], [1, 1, 0, 0, 0, 1, 1, 0]
  )
  function = tokenizers.word_table(tokenizer, ("function",))
  np.testing.assert_array_equal(np.flatnonzero(function[ids[0]]), [3])
  with pytest.raises(ValueError, match="word kind 'verbs' is unknown"):
    tokenizers.word_table(tokenizer, ("verbs",))
