"""Prompts as SD3 and FLUX read them, encoded once into a `cache.Cache`.

The encoders are functions of token ids, so nothing here knows a network.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging

from spatialrl.data.cache import Writer

CLIP_TOKENS = 77
T5_TOKENS = 256

# Kind of a tokenizer -> its class in transformers, and the sets of files of
# which one must be there. Without them transformers makes an empty vocabulary.
_TOKENIZERS = {
    "clip": (
        "CLIPTokenizerFast",
        (("tokenizer.json",), ("vocab.json", "merges.txt")),
    ),
    "t5": ("T5TokenizerFast", (("tokenizer.json",),)),
}
_WEIGHTS = (".safetensors", ".bin")
DTYPES = ("bfloat16", "float32")
TOO_LONG = ("refuse", "cut")


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A text encoder and what it needs of a prompt.

  Attributes:
    tokenizer: as `load_tokenizer` returns it.
    max_tokens: L, to which prompts are padded.
    apply: i32[B, L] -> (states [B, L, D], pooled [B, P] or None); usually
      `conditioning` of `models/clip.py` or `models/t5.py`, jitted, its sizes
      and parameters bound outside of `jit`.
  """

  tokenizer: Any
  max_tokens: int
  apply: Callable


class Cut(NamedTuple):
  """A prompt that an encoder did not read to its end."""

  prompt: str
  max_tokens: int
  removed: str


def load_tokenizer(folder, kind):
  """The tokenizer of a folder, never from the network.

  Args:
    folder: such as `tokenizer_2` of a diffusers folder.
    kind: "clip" or "t5".

  Returns:
    A fast tokenizer of transformers, with the folder's own padding token.

  Raises:
    ValueError: if a file is missing or cannot be read.
  """
  import transformers  # slow to import

  name, choices = _TOKENIZERS[kind]
  folder = pathlib.Path(folder)
  there = {path.name for path in folder.glob("*") if path.stat().st_size}
  if not any(there.issuperset(files) for files in choices):
    needed = " or ".join(" and ".join(files) for files in choices)
    raise ValueError(
        f"tokenizer folder {str(folder)!r} is not complete; a {kind} tokenizer"
        f" needs {needed}."
    )
  try:
    return getattr(transformers, name).from_pretrained(
        folder, local_files_only=True
    )
  except Exception as error:  # what tokenizers raises is of no narrower class
    raise ValueError(
        f"tokenizer files in {str(folder)!r} cannot be read ({error})."
    ) from error


def token_ids(tokenizer, prompts, max_tokens, *, too_long="refuse"):
  """Prompts as ids of one length, with the end token and then padding.

  Args:
    tokenizer: as `load_tokenizer` returns it.
    prompts: list of B str.
    max_tokens: L.
    too_long: "refuse" prompts of more tokens, or "cut" them before the end
      token, as diffusers does.

  Returns:
    (i32[B, L] ids, list of Cut).

  Raises:
    ValueError: for too long a prompt, unless they are cut.
  """
  if too_long not in TOO_LONG:
    raise ValueError(
        f"too_long is {too_long!r}; allowed are {list(TOO_LONG)}."
    )
  # Not verbose: lengths are judged here.
  whole = tokenizer(list(prompts), verbose=False)["input_ids"]
  cut = [
      Cut(prompt, max_tokens, tokenizer.decode(ids[max_tokens - 1 : -1]))
      for prompt, ids in zip(prompts, whole, strict=True)
      if len(ids) > max_tokens
  ]
  if cut and too_long == "refuse":
    raise ValueError(
        f"prompt {cut[0].prompt!r} is longer than the {max_tokens} tokens of an"
        f" encoder, which would cut {cut[0].removed!r} ({len(cut)} prompts in"
        " all); shorten it or set too_long to 'cut'."
    )
  ids = np.full((len(whole), max_tokens), tokenizer.pad_token_id, np.int32)
  for row, tokens in zip(ids, whole, strict=True):
    row[: len(tokens)] = tokens[:max_tokens]
    if len(tokens) > max_tokens:
      row[-1] = tokens[-1]
  return ids, cut


def join_sd3(clip_l, clip_g, t5):
  """What SD3 and SD3.5 read, as diffusers' StableDiffusion3Pipeline joins it.

  Args:
    clip_l: (states [B, L, D], projected pooled [B, P]) of the first CLIP.
    clip_g: the same of the second CLIP.
    t5: (states [B, L', D'], None), D' at least both D together.

  Returns:
    (text [B, L + L', D'], the states of both CLIPs side by side and zeros up
    to D', then those of T5; pooled [B, P], both vectors in a row).
  """
  clip = np.concatenate([clip_l[0], clip_g[0]], axis=-1)
  missing = t5[0].shape[-1] - clip.shape[-1]
  if missing < 0:
    raise ValueError(
        f"the states of both CLIPs have {clip.shape[-1]} channels; T5's"
        f" {t5[0].shape[-1]} must be at least as many."
    )
  clip = np.pad(clip, ((0, 0), (0, 0), (0, missing)))
  text = np.concatenate([clip, t5[0]], axis=1)
  return text, np.concatenate([clip_l[1], clip_g[1]], axis=-1)


def join_flux(clip, t5):
  """What FLUX reads, as diffusers' FluxPipeline: T5's states, CLIP's vector."""
  return np.asarray(t5[0]), np.asarray(clip[1])


def model_key(folders):
  """Identity of the encoders: changes with any of their files.

  Args:
    folders: of the encoders and their tokenizers, in order. Weights count by
      the name and size of their files, all other files by content.

  Returns:
    str, a sha256.

  Raises:
    ValueError: if a folder has no files.
  """
  digest = hashlib.sha256()
  for folder in folders:
    files = sorted(p for p in pathlib.Path(folder).glob("*") if p.is_file())
    if not files:
      raise ValueError(f"folder {str(folder)!r} does not exist or is empty.")
    for path in files:
      if path.suffix in _WEIGHTS:
        content = str(path.stat().st_size)
      else:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
      digest.update(f"{path.name} {content}\n".encode())
    digest.update(b"\n")
  return digest.hexdigest()


def encode_prompts(
    folder,
    prompts,
    encoders,
    *,
    join,
    model,
    dtype="bfloat16",
    batch=8,
    shard=256,
    too_long="refuse",
    track=iter,
):
  """Adds the prompts that are not yet in a cache folder to it.

  Every prompt is tokenised before any is encoded. If it is killed, the next
  run goes on behind the last whole shard.

  Args:
    folder: of the cache, made if need be.
    prompts: list of str; the empty prompt of guidance is one like others.
    encoders: list of Encoder, in the order of the arguments of the join.
    join: key of JOINS.
    model: str, as `model_key` returns it.
    dtype: in which the cache stores, "bfloat16" or "float32".
    batch: B, prompts encoded at a time.
    shard: N, prompts a file.
    too_long: see `token_ids`.
    track: passes on what it is given to go through, a bar for instance.

  Returns:
    (number of prompts encoded now, list of Cut over all prompts and encoders).

  Raises:
    ValueError: for an unknown join or dtype, too long a prompt, or a folder
      that was made with other encoders or settings or that another process is
      writing.
  """
  for name, value, allowed in (
      ("join", join, sorted(JOINS)),
      ("dtype", dtype, list(DTYPES)),
  ):
    if value not in allowed:
      raise ValueError(f"{name} is {value!r}; allowed are {allowed}.")
  settings = {
      "model": model,
      "join": join,
      "dtype": dtype,
      "max_tokens": [encoder.max_tokens for encoder in encoders],
  }
  for name, least, value in (
      ("batch", 1, batch),
      *(("max_tokens", 2, encoder.max_tokens) for encoder in encoders),
  ):
    if value < least:
      raise ValueError(f"{name} is {value}; it must be at least {least}.")
  cache = Writer(folder, settings)
  prompts = list(dict.fromkeys(prompts))
  ids, cut = [], []
  for encoder in encoders:
    rows, cuts = token_ids(
        encoder.tokenizer, prompts, encoder.max_tokens, too_long=too_long
    )
    ids.append(rows)
    cut.extend(cuts)

  def encode(rows):
    # A short batch is filled up, so that the encoders compile once.
    filled = np.resize(rows, batch)
    states = [
        encoder.apply(all_ids[filled])
        for encoder, all_ids in zip(encoders, ids, strict=True)
    ]
    joined = JOINS[join](*states)
    return [x[: len(rows)].astype(jnp.dtype(dtype)) for x in joined]

  if all(prompt in cache for prompt in prompts):
    return 0, cut  # without the lock: the processes of a run come at once
  with cache.locked():
    new = [i for i, prompt in enumerate(prompts) if prompt not in cache]
    shards = [new[i : i + shard] for i in range(0, len(new), shard)]
    starts = [(s, i) for s in shards for i in range(0, len(s), batch)]
    parts = []
    for rows, start in track(starts):
      parts.append(encode(rows[start : start + batch]))
      if start + batch >= len(rows):
        text, pooled = map(np.concatenate, zip(*parts, strict=True))
        cache.add([prompts[i] for i in rows], text, pooled)
        parts = []
  return len(new), cut


def report_cuts(cuts):
  """Logs what encoders did not read, a line for each length, with an example.

  Args:
    cuts: list of Cut.
  """
  for tokens in sorted({cut.max_tokens for cut in cuts}):
    found = [cut for cut in cuts if cut.max_tokens == tokens]
    logging.warning(
        "an encoder of %d tokens cuts %d prompts; off %r it cuts %r",
        tokens, len(found), found[0].prompt, found[0].removed,
    )


JOINS = {"sd3": join_sd3, "flux": join_flux}
