"""What a folder is, told by its files alone, and whether it is whole."""

import dataclasses
import importlib
import json
import pathlib
import re

from spatialrl.convert import shards
from spatialrl.convert.table import Entry

# Class in config.json -> module of this package, imported when it is needed.
SUPPORTED = {
  "SD3Transformer2DModel": "sd3",
  "FluxTransformer2DModel": "flux",
  "AutoencoderKL": "vae",
  "CLIPTextModel": "clip",
  "CLIPTextModelWithProjection": "clip",
  "CLIPVisionModelWithProjection": "clip",
  "CLIPModel": "clip",
  "T5EncoderModel": "t5",
  "Qwen2_5_VLForConditionalGeneration": "qwen_vl",
}
# `model_type` of folders whose config.json names no class.
_TYPES = {
  "clip_text_model": "CLIPTextModel",
  "clip": "CLIPModel",
  "t5": "T5EncoderModel",
  "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}
PEFT_CONFIG = "adapter_config.json"
# File of each LoRA layout -> (name of the layout, what its tensors start with).
ADAPTERS = {
  "adapter_model.safetensors": ("peft", "base_model.model."),
  "pytorch_lora_weights.safetensors": ("diffusers", "transformer."),
}


@dataclasses.dataclass(frozen=True)
class Model:
  """A folder with the weights of one network.

  Attributes:
    path: the folder.
    class_name: of diffusers or transformers, a key of SUPPORTED.
    fields: the content of its config.json, with the class in `architectures`
      if that named none.
  """

  path: pathlib.Path
  class_name: str
  fields: dict

  @property
  def module(self):
    """The module of this package that has the network's table."""
    return importlib.import_module(f"spatialrl.convert.{self.kind}")

  @property
  def kind(self):
    """Name of that module: "sd3", "flux", ..."""
    return SUPPORTED[self.class_name]

  def canonical(self, name):
    """A tensor's name as the table spells it, whichever version wrote it."""
    spell = getattr(self.module, "canonical", None)
    return name if spell is None else spell(name)


@dataclasses.dataclass(frozen=True)
class Adapter:
  """A folder with a LoRA: one of the files of ADAPTERS."""

  path: pathlib.Path
  file: str

  @property
  def layout(self):
    """"peft" or "diffusers"."""
    return ADAPTERS[self.file][0]


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """A whole diffusers pipeline.

  Attributes:
    path: the folder.
    class_name: of the pipeline, from model_index.json.
    parts: names of the folders below it that hold a supported network.
    others: names of its other parts: tokenizers, the scheduler.
  """

  path: pathlib.Path
  class_name: str
  parts: tuple[str, ...]
  others: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Whole:
  """A model folder whose names, shapes and dtypes were all found right.

  Attributes:
    model: Model.
    sizes: of the network, as `read_config` of its module gives them.
    entries: its table.
    tensors: dict of the entries' names -> shards.Tensor.
  """

  model: Model
  sizes: object
  entries: tuple[Entry, ...]
  tensors: dict


def recognise(path):
  """What the folder `path` holds: a Model, an Adapter or a Pipeline.

  Raises:
    ValueError: if it is no folder of a kind that we read; says what it is.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_dir():
    raise ValueError(f"{path} is not a folder.")
  if (path / "model_index.json").exists():
    return _pipeline(path)
  for file in ADAPTERS:
    if (path / file).exists():
      return Adapter(path, file)
  if (path / PEFT_CONFIG).exists():
    raise ValueError(f"{path} has {PEFT_CONFIG} but no {next(iter(ADAPTERS))}.")
  if not (path / "config.json").exists():
    raise ValueError(
      f"{path} has none of config.json, model_index.json and"
      f" {sorted(ADAPTERS)}; it is no folder of a model, pipeline or LoRA."
    )
  fields = read_json(path / "config.json")
  names = [fields.get("_class_name"), *(fields.get("architectures") or ())]
  names = [name for name in names if name]
  if not names:
    names = [_TYPES.get(fields.get("model_type"), "no class")]
    fields = fields | {"architectures": names}
  if names[0] not in SUPPORTED:
    raise ValueError(
      f"{path} holds {names[0]}; allowed are {sorted(SUPPORTED)}."
    )
  return Model(path, names[0], fields)


def open_model(path, kind=None):
  """A Model folder, checked.

  Args:
    path: the folder.
    kind: "sd3", "flux", "vae", "clip", "t5" or "qwen_vl"; None for any.

  Returns:
    Whole.

  Raises:
    ValueError: if it holds something else, a file is missing or cut short, or
      a tensor is unknown, missing, of another shape or of no float dtype; the
      sentence names the file or tensor.
  """
  found = recognise(path)
  if isinstance(found, Pipeline):
    raise ValueError(
      f"{path} is a whole {found.class_name}; give one of its parts"
      f" {found.parts}."
    )
  if isinstance(found, Adapter):
    raise ValueError(f"{path} is a LoRA; a folder of whole weights is needed.")
  if kind not in (None, found.kind):
    raise ValueError(f"{path} holds {found.class_name}; {kind} is needed.")
  module = found.module
  try:
    sizes = module.read_config(found.fields)
  except KeyError as error:
    raise ValueError(f"{path}/config.json has no field {error}.") from error
  except ValueError as error:
    raise ValueError(f"{path}/config.json: {error}") from error
  entries = tuple(module.table(sizes))
  tensors = {
    found.canonical(name): tensor
    for name, tensor in shards.open_tensors(found.path).items()
  }
  _check(found, entries, tensors, module.SKIPPED)
  wanted = {entry.name: tensors[entry.name] for entry in entries}
  return Whole(found, sizes, entries, wanted)


def read_json(path):
  """The object in a JSON file; ValueError naming the file if it has none."""
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is not JSON ({error}).") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} is a {type(content).__name__}, not an object.")
  return content


def _pipeline(path):
  index = read_json(path / "model_index.json")
  parts, others = [], []
  for name, value in index.items():
    if isinstance(value, list) and value[0]:
      (parts if value[1] in SUPPORTED else others).append(name)
  class_name = index.get("_class_name", "pipeline")
  return Pipeline(path, class_name, tuple(parts), tuple(others))


def _check(model, entries, tensors, skipped):
  """Raises ValueError naming the first tensor that is not as it must be."""
  shapes = {entry.name: tuple(entry.shape) for entry in entries}
  _raise_first(model, "missing", [n for n in shapes if n not in tensors])
  buffers = re.compile("|".join(skipped) or r"(?!)")
  _raise_first(
    model,
    "unknown",
    [n for n in tensors if n not in shapes and not buffers.fullmatch(n)],
  )
  for name, shape in shapes.items():
    tensor = tensors[name]
    if tensor.shape != shape:
      raise ValueError(
        f"tensor {name!r} of {tensor.file} has shape {list(tensor.shape)}; its"
        f" config.json needs {list(shape)}."
      )
    if tensor.code not in shards.FLOATS:
      raise ValueError(
        f"tensor {name!r} of {tensor.file} is {tensor.code}; allowed are"
        f" {sorted(shards.FLOATS)}."
      )


def _raise_first(model, what, names):
  if names:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    raise ValueError(
      f"tensor {names[0]!r} is {what} in {model.path}{more}, going by a"
      f" {model.class_name} of its config.json."
    )
