"""The programs of an online run, compiled from shapes: no weights, no devices.

They are those that `loop.Loop` and the judges run, with the arguments and
placements that they get there.
"""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from spatialrl.convert import folder
from spatialrl.data import encode
from spatialrl.data.prompts import States, Tokens
from spatialrl.models import published, spatial_score
from spatialrl.models.build import load_policy
from spatialrl.models.spatial_score import SpatialScoreConfig
from spatialrl.parallel import estimate, partition
from spatialrl.parallel import mesh as meshes
from spatialrl.records import Signals
from spatialrl.rewards import qwen
from spatialrl.rl.ema import EARLY
from spatialrl.train import backbone, worlds
from spatialrl.train.loop import Loop

# Of a SpatialScore whose file is not there, as configs/spatialscore_qwen.py
# trains it.
_READING = qwen.Reading(pixels=504, max_tokens=512)
_ON_HOST = ("oracle", "ocr", "remote")  # judges that no device runs


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled program of a run.

  Attributes:
    compiled: what `jax.stages.Lowered.compile` gives.
    calls: of one iteration.
    resident: bytes of a device that the program does not touch, but that
      the run holds meanwhile: weights and batches of the others.
  """

  compiled: Any
  calls: int
  resident: int


@dataclasses.dataclass(frozen=True)
class Shapes:
  """What a run holds, as ShapeDtypeStructs on a mesh.

  Attributes:
    loop: Loop, which has run nothing.
    policy: Policy or DiffusionPolicy.
    base: frozen weights of the policy.
    state: TrainState.
    text: what `loop` reads of an iteration's prompts.
    has_ids: whether the first part of `text` is token ids.
    judges: dict from name to (jitted function, weights, inputs, calls).
    step_bytes: bytes of a device that each step of the rollout's window takes:
      a state and a mean, and a log-prob for each position.
  """

  loop: Loop
  policy: Any
  base: dict
  state: Any
  text: tuple
  has_ids: bool
  judges: dict
  step_bytes: int

  @property
  def weight_bytes(self):
    """Bytes of a device that all weights and the state take."""
    judges = [judge[1] for judge in self.judges.values()]
    return _bytes((self.base, self.state, judges))


def shapes(config, mesh):
  """Everything that a run would hold.

  Args:
    config: of an `online` run.
    mesh: of devices that need not exist; not entered, for whatever is computed
      on the way is computed here.

  Raises:
    ValueError: for a model that has neither a folder nor published sizes, or a
      judge that cannot be planned.
  """
  world = worlds.name_of(config)
  policy, base, text, read = (_images if world == "images" else _scenes)(config)
  images = images_of(config)
  judges = {
      name: _judge(name, config.rewards[name], mesh, images, policy.size)
      for name in config.rewards
      if name not in _ON_HOST
  }
  base = partition.structs(mesh, policy.family, base)
  loop = Loop(config, mesh, policy, {}, read)
  return Shapes(
      loop=loop,
      policy=policy,
      base=base,
      state=loop.shapes(base),
      text=_batch(mesh, text),
      has_ids=read.has_ids,
      judges=judges,
      step_bytes=(
          4 * images * math.prod(policy.latent_shape[:2])
          * (2 * policy.latent_shape[2] + 1) // meshes.shards(mesh)
      ),
  )


def compile_all(config, mesh):
  """Compiles the programs one after the other.

  Args:
    config: of an `online` run.
    mesh: as for `shapes`.

  Yields:
    (name, Program).

  Raises:
    ValueError: see `shapes`.
    OutOfMemory: for the first program that no device could hold.
  """
  held = shapes(config, mesh)
  whole = meshes.replicated(mesh)
  number = _struct((), jnp.int32, whole)
  standing = held.weight_bytes
  programs = held.loop.programs()

  def run(name, arguments, lasting, passing=()):
    lowered, compiled = _compile(mesh, name, programs[name], arguments)
    resident = standing - _bytes(lasting) + _bytes(passing)
    out = jax.tree.map(
        lambda x, s: _struct(x.shape, x.dtype, s),
        lowered.out_info,
        compiled.output_shardings,
    )
    return Program(compiled, 1, resident), out

  state, rows = held.state, images_of(config)
  samples = state.old or state.params
  times = _struct((config.rollout.steps + 1,), jnp.float32, whole)
  rollout, drawn = run(
      "rollout",
      (held.base, samples, held.text, times, state.key, number, number),
      (held.base, samples),
  )
  if config.behaviour.name in EARLY:  # the next rollout is there early
    standing += _bytes(drawn)
    rollout = dataclasses.replace(
        rollout, resident=rollout.resident + _bytes(drawn)
    )
  yield "rollout", rollout
  trajectory, cond, images = drawn

  score = _struct((rows,), jnp.float32, whole)
  signals = {name: Signals(scalar=score) for name in config.rewards}
  for name, (judge, weights, inputs, calls) in held.judges.items():
    title = f"reward_{name}"
    lowered, compiled = _compile(mesh, title, judge, (weights, *inputs))
    resident = standing - _bytes(weights) + _bytes(drawn)
    yield title, Program(compiled, calls, resident)
    signals[name] = jax.tree.map(
        lambda x: _struct((rows, *x.shape[1:]), x.dtype, whole),
        lowered.out_info,
    )

  labels = _struct((rows,), jnp.int32, whole)
  ids = held.text[0] if held.has_ids else None
  prepare, (batch, *_) = run(
      "prepare",
      (
          trajectory, cond, ids, signals, labels, state.stats, state.key,
          number,
      ),
      state.stats,
      images,
  )
  yield "prepare", prepare
  update, _ = run(
      "update", (held.base, state, batch), (held.base, state), drawn
  )
  yield "update", update


class OutOfMemory(Exception):
  """The compiler found a program too large for a device.

  Attributes:
    name: of the program.
    wanted: bytes of a device.
  """

  def __init__(self, name, wanted):
    super().__init__(f"{name} wants {wanted / 1e9:.1f} GB of a device.")
    self.name, self.wanted = name, wanted


def _compile(mesh, name, function, arguments):
  """(lowered, compiled); raises OutOfMemory."""
  with jax.set_mesh(mesh):
    lowered = function.lower(*arguments)
    try:
      return lowered, lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      wanted = estimate.exhausted(str(error))
      if wanted is None:
        raise
      raise OutOfMemory(name, wanted) from error


def images_of(config):
  """Images of an iteration."""
  return config.prompts.per_step * config.rollout.group


def _scenes(config):
  """(policy, base weights, text, reader) of the embedded world."""
  policy, base = load_policy(config.init, config.lora, config.remat)
  count = (images_of(config), config.prompts.max_tokens)
  text = (_struct(count, jnp.int32), _struct(count, bool))
  return policy, base, text, Tokens(config.prompts.max_tokens)


def _images(config):
  """(policy, base weights, text, reader) of a downloaded backbone."""
  root, text = pathlib.Path(config.model.folder).expanduser(), config.text
  published_sizes = published.PIPELINES.get(root.name, (None, None))
  sizes = [
      _sizes("model.folder", root / name, known, published.PIPELINES)
      for name, known in zip(
          ("transformer", "vae"), published_sizes, strict=True
      )
  ]
  policy = backbone.make_policy(config, *sizes)
  tokens = text.t5_tokens
  tokens += encode.CLIP_TOKENS if policy.family == "sd3" else 0
  base = jax.eval_shape(
      lambda key: policy.init(key, tokens), jax.random.key(0)
  )
  base = {
      name: _cast(part, text.dtype if name == "empty" else config.model.dtype)
      for name, part in base.items()
  }
  rows = images_of(config)
  text = [
      _struct((rows, *x.shape[1:]), x.dtype)
      for x in (base["empty"]["text"], base["empty"]["pooled"])
  ]
  return policy, base, tuple(text), States  # which nobody will ask to read


def _judge(name, config, mesh, images, side):
  """(jitted function, weights, inputs, calls) of a judge."""
  if name != "qwen_score":
    raise ValueError(
        f"rewards has {name!r}; planned can be qwen_score and, as they run on"
        f" the host, {', '.join(_ON_HOST)}."
    )
  path = pathlib.Path(config.folder).expanduser()
  known = published.VISION_LANGUAGE
  sizes = _sizes("rewards.qwen_score.folder", path, known.get(path.name), known)
  sizes = dataclasses.replace(sizes, dtype=config.dtype)
  if pathlib.Path(config.weights).expanduser().exists():
    model, reading, _ = qwen.load(config.weights, sizes)
  else:
    model, reading = SpatialScoreConfig(sizes), _READING

  def init(key):
    base = spatial_score.init(model, key)
    return base, spatial_score.init_trainable(model, key, base)

  base, trained = jax.eval_shape(init, jax.random.key(0))
  weights = tuple(
      partition.structs(mesh, "qwen_vl", tree)
      for tree in (_cast(base, config.dtype), trained)
  )
  rows, length = config.batch or images, reading.max_tokens
  inputs = (
      (
          _struct((rows, length), jnp.int32),
          _struct((rows, length), bool),
          _struct((rows, 3, length), jnp.int32),
      ),
      _struct((rows, side, side, 3), jnp.float32),
  )
  score = qwen.jitted(mesh, model, reading)
  return score, weights, _batch(mesh, inputs), math.ceil(images / rows)


def _sizes(field, path, known, allowed):
  """Sizes in a model folder, else the published ones of its name."""
  if (path / "config.json").exists():
    model = folder.recognise(path)
    return model.module.read_config(model.fields)
  if known is None:
    raise ValueError(
        f"{field} leads to {path}, which has no config.json; without one, its"
        f" name must be one of {sorted(allowed)}."
    )
  return known


def _struct(shape, dtype, sharding=None):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _cast(tree, dtype):
  return jax.tree.map(lambda x: _struct(x.shape, jnp.dtype(dtype)), tree)


def _batch(mesh, tree):
  rows = meshes.batched(mesh)
  return jax.tree.map(lambda x: _struct(x.shape, x.dtype, rows), tree)


def _bytes(tree):
  """Bytes that a device holds of a tree of placed ShapeDtypeStructs."""
  return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
  )
