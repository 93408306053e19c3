"""Folders of tiny tokenizers, laid out as those of SD3.5 and FLUX."""

import json
import string

import transformers

CLIP_SIZE = 57
T5_SIZE = 32


def clip(folder, pad="<|endoftext|>"):
  """A CLIP tokenizer that spells; ids 0 to 56, "!" is 0."""
  letters = string.ascii_lowercase
  tokens = [
      "!", *letters, *(f"{x}</w>" for x in letters), "re", "red</w>",
      "<|startoftext|>", "<|endoftext|>",
  ]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  fields = {"tokenizer_class": "CLIPTokenizer", "pad_token": pad}
  folder.mkdir(parents=True)
  (folder / "vocab.json").write_text(json.dumps(vocabulary))
  (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
  (folder / "tokenizer_config.json").write_text(json.dumps(fields))
  return folder


def t5(folder):
  """A T5 tokenizer that spells, but for "red"; ids 0 to 31."""
  scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -2.0, "▁red": -1.0}
  scores |= dict.fromkeys(string.ascii_lowercase, -3.0)
  made = transformers.T5TokenizerFast(vocab=list(scores.items()), extra_ids=0)
  made.save_pretrained(folder)
  return folder
