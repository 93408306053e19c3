"""The judge `qwen_score`: SpatialScore on Qwen2.5-VL, and its trained part.

The base comes from a Hugging Face folder; what was trained on it (adapters,
the row of the reward token, the head) is one safetensors file that also says
how images and prompts are read.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.convert import folder as folders
from spatialrl.convert import stream
from spatialrl.data import qwen_inputs
from spatialrl.io import assets
from spatialrl.models import spatial_score
from spatialrl.models.lora import LoRAConfig
from spatialrl.models.spatial_score import SpatialScoreConfig
from spatialrl.parallel import distributed, partition
from spatialrl.parallel import mesh as meshes
from spatialrl.records import Signals
from spatialrl.rewards.batches import in_batches

_KEY = "spatial_score"  # of the metadata in a file of the trained part


@dataclasses.dataclass(frozen=True)
class Reading:
  """How images and prompts are read; it belongs to the trained weights.

  Attributes:
    pixels: side to which images are resized, in whole image tokens.
    max_tokens: L, of prompt, template, image and reward token together.
  """

  pixels: int
  max_tokens: int


class Reader:
  """Prompts and images as inputs of one model."""

  def __init__(self, folder, model, reading):
    """Loads the tokenizer in `folder` and holds it against the model.

    Args:
      folder: of the Qwen2.5-VL.
      model: SpatialScoreConfig.
      reading: Reading.

    Raises:
      ValueError: for a tokenizer of another model, or an image size of no
        whole image tokens.
    """
    vision, token = model.backbone.vision, model.backbone.image_token
    self._tokenizer = qwen_inputs.load_tokenizer(folder)
    self._model, self._reading = model, reading
    (found,) = self._tokenizer.convert_tokens_to_ids([qwen_inputs.IMAGE_TOKEN])
    if found != token:
      raise ValueError(
          f"the tokenizer in {str(folder)!r} has the image token {found}; its"
          f" config.json says {token}."
      )
    if model.reward_token < len(self._tokenizer):
      raise ValueError(
          f"reward_token is {model.reward_token}; allowed are ids that no text"
          f" uses, here from {len(self._tokenizer)} on."
      )
    side = vision.patch * vision.merge
    if reading.pixels < side or reading.pixels % side:
      raise ValueError(
          f"pixels is {reading.pixels}; allowed are multiples of {side}, the"
          " side of an image token."
      )
    self._grid = _grid(model, reading)

  def tokens(self, prompts):
    """(ids i32[B, L], mask bool[B, L], positions i32[B, 3, L]) of prompts."""
    ids, mask, positions = qwen_inputs.encode(
        self._tokenizer,
        prompts,
        self._grid,
        max_tokens=self._reading.max_tokens,
        merge=self._model.backbone.vision.merge,
        end=(self._model.reward_token,),
    )
    return ids, mask, np.moveaxis(positions, 1, 0)

  def inputs(self, tokens, images):
    """QwenInputs of `tokens` and images f32[B, S, S, 3]; made for `jit`."""
    return inputs(self._model, self._reading, tokens, images)


def inputs(model, reading, tokens, images):
  """QwenInputs; see `Reader`, which also makes the tokens."""
  ids, mask, positions = tokens
  vision = model.backbone.vision
  patches = qwen_inputs.patches(
      images,
      (reading.pixels,) * 2,
      patch=vision.patch,
      merge=vision.merge,
      frames=vision.frames,
  )
  grids = (_grid(model, reading),) * images.shape[0]
  positions = jnp.moveaxis(positions, 0, 1)
  return qwen_inputs.QwenInputs(ids, mask, positions, patches, grids)


def _grid(model, reading):
  """(rows, columns) of patches of an image."""
  return (reading.pixels // model.backbone.vision.patch,) * 2


class QwenScore:
  """The mean of the published SpatialScore, its sigma beside it."""

  def __init__(self, config, mesh):
    """Loads the model.

    Args:
      config: fields `folder` (of the Qwen2.5-VL), `weights` (of the trained
        part), `dtype` (of base and activations), `batch` (images of a call; 0
        for all).
      mesh: the mesh in use.
    """
    self._mesh, self._batch = mesh, config.batch
    meshes.check_divides(mesh, "rewards.qwen_score.batch", config.batch)
    backbone, base = load_base(config.folder, config.dtype, mesh)
    self._model, reading, trained = load(config.weights, backbone)
    self._reader = Reader(config.folder, self._model, reading)
    self._params = base, partition.place(mesh, "qwen_vl", trained)
    self._score = jitted(mesh, self._model, reading)

  def __call__(self, images, prompts):
    """Signals of images f32[B, S, S, 3] in [-1, 1] under B prompts."""
    score = functools.partial(self._score, self._params)
    inputs = self._reader.tokens(prompts), images
    return in_batches(score, inputs, self._batch, self._mesh)

  def compilations(self):
    """How many programs were compiled; 1 for a steady batch shape."""
    return self._score._cache_size()


def judge(model, reading, params, tokens, images):
  """Signals of one call; the program of `QwenScore`.

  Args:
    model: SpatialScoreConfig.
    reading: Reading.
    params: (base, trained).
    tokens: as `Reader.tokens` gives them.
    images: f32[B, S, S, 3] in [-1, 1].
  """
  given = inputs(model, reading, tokens, images)
  mu, sigma = spatial_score.score(model, *params, given)
  return Signals(scalar=mu, sigma=sigma)


def jitted(mesh, model, reading):
  """`judge` of (params, tokens, images), compiled; see there."""
  return jax.jit(
      functools.partial(judge, model, reading),
      out_shardings=meshes.replicated(mesh),
      compiler_options=meshes.compiler_options(mesh),
  )


def check(config, prompts):
  """Refuses what `QwenScore` would, without reading the base's weights.

  Args:
    config: as for `QwenScore`.
    prompts: list of str that it will be asked about.
  """
  sizes = folders.open_model(config.folder, "qwen_vl").sizes
  model, reading, _ = load(config.weights, sizes)
  Reader(config.folder, model, reading).tokens(prompts)


def load_base(folder, dtype, mesh):
  """A Qwen2.5-VL without its language model head.

  Args:
    folder: of transformers.
    dtype: of parameters and activations.
    mesh: the mesh in use.

  Returns:
    (QwenVLConfig, params).

  Raises:
    ValueError: see `convert.folder.open_model`.
  """
  placement = functools.partial(partition.sharding, mesh, "qwen_vl")
  sizes, params = stream.load(
      folder, kind="qwen_vl", dtype=dtype, placement=placement
  )
  params.pop("lm_head", None)
  return dataclasses.replace(sizes, dtype=dtype), params


def save(path, model, reading, trained):
  """Writes the trained part; float32, with all that `load` needs.

  Args:
    path: safetensors file.
    model: SpatialScoreConfig.
    reading: Reading.
    trained: as `spatial_score.init_trainable` gives it.
  """
  fields = {
      "lora": dataclasses.asdict(model.lora),
      "reward_token": model.reward_token,
      "head": model.head,
      "reading": dataclasses.asdict(reading),
  }
  metadata = {_KEY: json.dumps(fields)}
  assets.save(
      path, distributed.to_host(trained), metadata, dtype=np.float32
  )


def load(path, backbone):
  """The inverse of `save`.

  Args:
    path: of the file.
    backbone: QwenVLConfig that it was trained on.

  Returns:
    (SpatialScoreConfig, Reading, trained).

  Raises:
    ValueError: if the file is missing, of something else or of another base.
  """
  trained, metadata = assets.load(path)
  if _KEY not in metadata:
    raise ValueError(f"weights {str(path)!r} are not those of a SpatialScore.")
  fields = json.loads(metadata[_KEY])
  lora = fields["lora"] | {"targets": tuple(fields["lora"]["targets"])}
  model = SpatialScoreConfig(
      backbone, LoRAConfig(**lora), fields["reward_token"], fields["head"]
  )

  def init(key):
    base = spatial_score.init(model, key)
    return spatial_score.init_trainable(model, key, base)

  expected = jax.eval_shape(init, jax.random.key(0))
  assets.check_shapes(trained, expected, path)
  return model, Reading(**fields["reading"]), trained
