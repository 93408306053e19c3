"""Our adapters from those of a folder and back, and adapters added to weights.

A folder's adapters are a dict of name of a dense layer -> `lora.Pair`; ours
are the collection "lora" of `models.lora`, stacked over layers.
"""

import collections
import pathlib
import re
import shutil

import numpy as np

from spatialrl.convert import folder, lora, shards
from spatialrl.convert.lora import Pair
from spatialrl.convert.table import flat, nested
from spatialrl.io.progress import progress
from spatialrl.models.lora import LoRAConfig


def to_tree(pairs, whole):
  """Adapters of a folder as ours.

  Layers of a stack that have none get zeros, and smaller ranks are filled up
  with zeros, neither of which adds anything.

  Args:
    pairs: see `lora.read`.
    whole: folder.Whole of the base model.

  Returns:
    (LoRAConfig, collection "lora" as a nested dict of f32 arrays); outputs are
    those of the folder wherever `adapted(config)` is entered.
  """
  rank = max(pair.a.shape[0] for pair in pairs.values())
  ((scale, _),) = collections.Counter(
    pair.scale for pair in pairs.values()
  ).most_common(1)
  stacks = collections.defaultdict(list)
  for entry in _dense(whole):
    stacks[entry.path.removesuffix("/kernel")].append(entry)
  found = {}
  for path, entries in stacks.items():
    if not any(_layer(entry) in pairs for entry in entries):
      continue
    entries.sort(key=lambda entry: entry.layer or 0)
    out, width = entries[0].read_shape
    a = np.zeros((len(entries), width, rank), np.float32)
    b = np.zeros((len(entries), rank, out), np.float32)
    for i, entry in enumerate(entries):
      pair = pairs.get(_layer(entry))
      if pair is not None:
        own = pair.a.shape[0]
        a[i, :, :own] = pair.a[:, _part(entry)].T
        b[i, :own] = pair.b.T * np.float32(pair.scale / scale)
    stacked = entries[0].layer is not None
    found[path] = {"a": a, "b": b} if stacked else {"a": a[0], "b": b[0]}
  targets = tuple(re.escape(path) for path in sorted(found))
  return LoRAConfig(rank, scale * rank, targets), nested(found)


def from_tree(config, tree, whole):
  """Our adapters as those of a folder; the inverse of `to_tree`.

  Where several of our layers are one of the folder's, its rank is their sum.

  Args:
    config: LoRAConfig; `targets` is not read.
    tree: collection "lora".
    whole: folder.Whole of the base model.

  Returns:
    See `lora.read`.

  Raises:
    ValueError: naming a path of `tree` that is no dense layer of the model.
  """
  adapters = flat(tree)
  pieces, used = collections.defaultdict(list), set()
  for entry in _dense(whole):
    path = entry.path.removesuffix("/kernel")
    if f"{path}/a" not in adapters:
      continue
    used |= {f"{path}/a", f"{path}/b"}
    a, b = (np.asarray(adapters[f"{path}/{x}"], np.float32) for x in "ab")
    if entry.layer is not None:
      a, b = a[entry.layer], b[entry.layer]
    full = np.zeros((a.shape[1], entry.shape[1]), np.float32)
    full[:, _part(entry)] = a.T
    pieces[_layer(entry)].append((full, b.T))
  if adapters.keys() - used:
    raise ValueError(
      f"adapter {min(adapters.keys() - used)!r} is of no dense layer of"
      f" {whole.model.class_name}."
    )
  scale, pairs = config.alpha / config.rank, {}
  for name, both in pieces.items():
    a, b = zip(*both, strict=True)
    pairs[name] = Pair(np.concatenate(a), np.concatenate(b, axis=1), scale)
  return pairs


def merge(params, config, tree):
  """Our base weights with our adapters added to them.

  Args:
    params: nested dict of arrays.
    config: LoRAConfig.
    tree: collection "lora" of the same network.

  Returns:
    nested dict like `params`, in its dtypes; the sums are made in float32.
  """
  merged, adapters = flat(params), flat(tree)
  for path in adapters:
    layer, _, key = path.rpartition("/")
    if key == "b":
      continue
    a, b = (np.asarray(adapters[f"{layer}/{x}"], np.float32) for x in "ab")
    kernel = merged[f"{layer}/kernel"]
    total = np.asarray(kernel, np.float32) + a @ b * np.float32(
      config.alpha / config.rank
    )
    merged[f"{layer}/kernel"] = total.astype(kernel.dtype)
  return nested(merged)


def merge_folder(base, path, out, *, limit):
  """Writes a base folder again with a LoRA folder added to its weights.

  One tensor is in memory at a time. config.json is written last, so a merge
  that was killed is not taken for a model.

  Args:
    base: folder of the base model.
    path: LoRA folder.
    out: new directory.
    limit: bytes a shard, at most.

  Raises:
    ValueError: see `lora.read`; or `out` holds files already.
  """
  whole = folder.open_model(base)
  pairs, out = lora.read(path, whole), pathlib.Path(out)
  if out.exists() and any(out.iterdir()):
    raise ValueError(f"{out} holds files already; choose an empty folder.")
  out.mkdir(parents=True, exist_ok=True)
  adapted = {
    whole.tensors[f"{name}.weight"].name: pair for name, pair in pairs.items()
  }
  tensors = shards.open_tensors(base)
  bar = progress(len(tensors), f"merge {whole.model.path.name}")

  def change(tensor):
    bar.advance()
    if tensor.name not in adapted:
      return tensor.raw()
    total = tensor.read().astype(np.float32) + adapted[tensor.name].delta()
    return total.astype(tensor.dtype)

  first = next(iter(tensors.values())).file.name
  stem = next(stem for stem in shards.STEMS if first.startswith(stem))
  shards.write_tensors(out, tensors.values(), change, stem=stem, limit=limit)
  shutil.copyfile(whole.model.path / "config.json", out / "config.json")
  bar.close()


def _dense(whole):
  return [entry for entry in whole.entries if entry.form == "dense"]


def _layer(entry):
  """Name of the folder's layer that an entry is the weight of."""
  return entry.name.removesuffix(".weight")


def _part(entry):
  """The inputs of the folder's layer that an entry has."""
  return slice(*(entry.part or (None,)))
