"""LoRA folders of peft and diffusers, read and written.

In a folder a dense layer with weight W [out, in] has A [r, in] and B [out, r]
and acts as W + (alpha / r) B A; ours are their transposes, stacked over layers
(`adapters` goes between). The layouts differ in what names start with and in
where the settings are: peft writes adapter_config.json, diffusers the metadata
of the file, without which it takes r for alpha.
"""

import collections
import dataclasses
import json
import pathlib
import re

import numpy as np
from safetensors.numpy import save_file

from spatialrl.convert import folder, shards

_METADATA = "lora_adapter_metadata"
# Settings that change what an adapter computes, and what we have of each.
_ONLY = {
  "bias": "none",
  "fan_in_fan_out": False,
  "layer_replication": None,
  "lora_bias": False,
  "modules_to_save": None,
  "target_parameters": None,
  "trainable_token_indices": None,
  "use_dora": False,
  "use_qalora": False,
  "use_rslora": False,
}
_PIPELINES = ("sd3", "flux")  # networks that diffusers calls "transformer"


@dataclasses.dataclass(frozen=True)
class Pair:
  """The adapter of one dense layer, as it is in a folder.

  Attributes:
    a: A, f32[r, in].
    b: B, f32[out, r].
    scale: alpha / r.
  """

  a: np.ndarray
  b: np.ndarray
  scale: float

  def delta(self):
    """What it adds to the weight, f32[out, in]."""
    return np.float32(self.scale) * (self.b @ self.a)


def open_adapter(path):
  """What a LoRA folder holds, before the base model is known.

  Returns:
    (dict of name -> shards.Tensor, dict of settings as peft names them, what
    the names start with); settings are {} where the folder has none.

  Raises:
    ValueError: if a file is missing or cut short, or a setting is one that we
      do not have.
  """
  adapter = folder.recognise(path)
  if not isinstance(adapter, folder.Adapter):
    raise ValueError(f"{path} is no LoRA folder of peft or diffusers.")
  tensors, metadata = shards.read_header(adapter.path / adapter.file)
  if not tensors:
    raise ValueError(f"{adapter.path / adapter.file} holds no tensor.")
  prefix = folder.ADAPTERS[adapter.file][1]
  return tensors, _read_settings(adapter, metadata, prefix), prefix


def read(path, whole):
  """Reads a LoRA folder.

  Args:
    path: a folder in the layout of peft or of diffusers.
    whole: folder.Whole of the base model.

  Returns:
    dict of name of a dense layer in the base folder -> Pair.

  Raises:
    ValueError: see `open_adapter`; or a tensor is unknown, missing or of
      another shape.
  """
  tensors, settings, prefix = open_adapter(path)
  weights = {e.name: e.shape for e in whole.entries if e.form == "dense"}
  found = collections.defaultdict(dict)
  for name, tensor in tensors.items():
    match = re.fullmatch(re.escape(prefix) + r"(.+)\.lora_([AB])\.weight", name)
    layer = whole.model.canonical(match[1] + ".weight") if match else ""
    if layer not in weights or tensor.code not in shards.FLOATS:
      raise ValueError(
        f"tensor {name!r} ({tensor.code}) of {tensor.file} is no A or B of a"
        f" dense layer of {whole.model.class_name}."
      )
    found[layer.removesuffix(".weight")][match[2]] = tensor
  pairs = {}
  for name, pair in found.items():
    out, width = weights[name + ".weight"]
    shapes = {key: tensor.shape for key, tensor in pair.items()}
    rank = shapes.get("A", (0,))[0]
    if not rank or shapes != {"A": (rank, width), "B": (out, rank)}:
      raise ValueError(
        f"{path} has {shapes} for {name!r}; it needs A of (r, {width})"
        f" and B of ({out}, r)."
      )
    a, b = (np.array(pair[key].read(), np.float32) for key in "AB")
    pairs[name] = Pair(a, b, _alpha(settings, name, rank) / rank)
  return pairs


def write(out, layout, pairs, whole):
  """Writes a LoRA folder that peft or diffusers loads.

  Args:
    out: directory, created; it must hold no LoRA of this layout yet.
    layout: "peft", or "diffusers" for SD3 and FLUX.
    pairs: see `read`.
    whole: folder.Whole of the base model.
  """
  files = {name: file for file, (name, _) in folder.ADAPTERS.items()}
  if layout not in files:
    raise ValueError(f"format is {layout!r}; allowed are {sorted(files)}.")
  if layout == "diffusers" and whole.model.kind not in _PIPELINES:
    raise ValueError(
      f"format is 'diffusers' and the base is {whole.model.class_name}; it"
      f" reads adapters of {_PIPELINES}, for others give 'peft'."
    )
  prefix = folder.ADAPTERS[files[layout]][1]
  tensors = {}
  for name, pair in pairs.items():
    tensors[f"{prefix}{name}.lora_A.weight"] = np.ascontiguousarray(pair.a)
    tensors[f"{prefix}{name}.lora_B.weight"] = np.ascontiguousarray(pair.b)
  settings, metadata = _settings(pairs), {"format": "pt"}
  out = pathlib.Path(out)
  if (out / files[layout]).exists():
    raise ValueError(f"{out} holds a LoRA already; choose another folder.")
  out.mkdir(parents=True, exist_ok=True)
  if layout == "peft":
    settings["base_model_name_or_path"] = str(whole.model.path.resolve())
    text = json.dumps(settings, indent=2) + "\n"
    (out / folder.PEFT_CONFIG).write_text(text)
  else:
    named = {prefix + key: value for key, value in settings.items()}
    metadata[_METADATA] = json.dumps(named, indent=2)
  save_file(tensors, out / files[layout], metadata)


def _read_settings(adapter, metadata, prefix):
  """Settings of an adapter folder, checked; {} where there are none."""
  if adapter.layout == "peft":
    path = adapter.path / folder.PEFT_CONFIG
    if not path.exists():
      raise ValueError(f"{path} is missing; it has the adapter's alpha.")
    settings = folder.read_json(path)
  else:
    settings = {
      key.removeprefix(prefix): value
      for key, value in json.loads(metadata.get(_METADATA, "{}")).items()
    }
  for name, value in _ONLY.items():
    if settings.get(name, value) != value:
      raise ValueError(
        f"{adapter.path} has {name} {settings[name]!r}; allowed is {value!r}."
      )
  return settings


def _alpha(settings, name, rank):
  """Alpha of one layer: its pattern's, or the common one, or its rank."""
  for pattern, alpha in settings.get("alpha_pattern", {}).items():
    if re.fullmatch(rf"(.*\.)?({pattern})", name):
      return alpha
  return settings.get("lora_alpha", rank)


def _settings(pairs):
  """What peft and diffusers must know of the pairs beside their tensors."""
  shapes = {name: (p.a.shape[0], p.scale) for name, p in pairs.items()}
  (rank, scale), _ = collections.Counter(shapes.values()).most_common(1)[0]
  others = {k: v for k, v in shapes.items() if v != (rank, scale)}
  return {
    "peft_type": "LORA",
    "r": rank,
    "lora_alpha": scale * rank,
    "target_modules": sorted(pairs),
    "rank_pattern": {f"^{re.escape(k)}": r for k, (r, _) in others.items()},
    "alpha_pattern": {
      f"^{re.escape(k)}": r * scale for k, (r, scale) in others.items()
    },
  }
