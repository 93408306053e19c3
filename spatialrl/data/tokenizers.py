"""The embedded world's word-level tokenizer and batches of token ids.

Run as a program it writes the committed `assets/tokenizer.json` again.
"""

import pathlib

import numpy as np

from spatialrl.scenes import grammar

ASSET = pathlib.Path(__file__).parent.parent / "assets" / "tokenizer.json"
PAD = "[PAD]"


def build():
  """Makes the tokenizer of `grammar.words()`, one token a word.

  Articles are dropped, a comma is a token, padding is 0, and there is no
  token for unknown words.

  Returns:
    str, the content of a tokenizer.json.
  """
  import tokenizers  # slow to import, as is transformers below

  vocabulary = {word: i for i, word in enumerate((PAD, *grammar.words()))}
  made = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
  )
  articles = tokenizers.Regex(rf"\b(?:{'|'.join(grammar.ARTICLES)})\b")
  made.normalizer = tokenizers.normalizers.Replace(articles, "")
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.add_special_tokens([PAD])
  return made.to_str(pretty=True) + "\n"


def load(path=None):
  """Loads a tokenizer from a file, never from the network.

  Args:
    path: a tokenizer.json; None is the one of the embedded world.

  Returns:
    transformers.PreTrainedTokenizerFast.
  """
  import transformers

  path = pathlib.Path(path or ASSET)
  if not path.is_file():
    raise ValueError(f"tokenizer file {str(path)!r} does not exist.")
  return transformers.PreTrainedTokenizerFast(
      tokenizer_file=str(path), pad_token=PAD
  )


def caption_tokens(relations):
  """Tokens of a prompt that states so many directions between plain things.

  Six a clause (colour, shape, two for "left of", colour, shape) and a comma
  between two clauses; "above" and "below" take one less.
  """
  return 7 * relations - 1


def encode(tokenizer, prompts, max_tokens):
  """Turns prompts into ids of one length.

  Args:
    tokenizer: a word-level tokenizer, as `load` returns it.
    prompts: list of B str; an empty one is all padding.
    max_tokens: int, L, the config field `prompts.max_tokens`.

  Returns:
    (i32[B, L] ids, bool[B, L] mask, True where a token is real).

  Raises:
    ValueError: for a word the tokenizer does not know, or too long a prompt.
  """
  vocabulary = tokenizer.get_vocab()
  for prompt in prompts:
    unknown = [w for w in _words(tokenizer, prompt) if w not in vocabulary]
    if unknown:
      raise ValueError(
          f"prompt {prompt!r} has the word {unknown[0]!r}, which the tokenizer"
          f" does not know; allowed are {sorted(set(vocabulary) - {PAD})}."
      )
  ids = np.full((len(prompts), max_tokens), tokenizer.pad_token_id, np.int32)
  mask = np.zeros((len(prompts), max_tokens), bool)
  rows = tokenizer(list(prompts))["input_ids"]
  for row, (prompt, tokens) in enumerate(zip(prompts, rows, strict=True)):
    if len(tokens) > max_tokens:
      raise ValueError(
          f"prompt {prompt!r} has {len(tokens)} tokens; prompts.max_tokens"
          f" allows {max_tokens}."
      )
    ids[row, : len(tokens)] = tokens
    mask[row, : len(tokens)] = True
  return ids, mask


def word_table(tokenizer, kinds):
  """Which token ids are words of some kinds, bool[V].

  Args:
    tokenizer: as `load` returns it.
    kinds: names of WORD_KINDS.

  Raises:
    ValueError: for an unknown kind.
  """
  vocabulary = tokenizer.get_vocab()
  table = np.zeros(len(vocabulary), bool)
  for kind in kinds:
    if kind not in grammar.WORD_KINDS:
      raise ValueError(
          f"word kind {kind!r} is unknown; allowed are"
          f" {sorted(grammar.WORD_KINDS)}."
      )
    table[[vocabulary[word] for word in grammar.WORD_KINDS[kind]]] = True
  return table


def _words(tokenizer, prompt):
  backend = tokenizer.backend_tokenizer
  text = backend.normalizer.normalize_str(prompt)
  return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


if __name__ == "__main__":
  ASSET.write_text(build())
