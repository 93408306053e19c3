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
from spatialrl.models import published, spatial_score
from spatialrl.models.build import load_policy
from spatialrl.models.spatial_score import SpatialScoreConfig
from spatialrl.parallel import mesh as meshes
from spatialrl.parallel import partition
from spatialrl.records import Signals
from spatialrl.rewards import qwen
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
    base: frozen weights of the policy.
    state: TrainState.
    text: what `loop` reads of an iteration's prompts.
    judges: dict from name to (jitted function, weights, inputs, calls).
  """

  loop: Loop
  base: dict
  state: Any
  text: tuple
  judges: dict


def shapes(config, mesh):
  """Everything that a run would hold.

  Args:
    config: of an `online` run.
    mesh: of devices that need not exist; entered.

  Raises:
    ValueError: for a model that has neither a folder nor published sizes, or a
      judge that cannot be planned.
  """
  world = worlds.name_of(config)
  policy, base, text = (_images if world == "images" else _scenes)(config)
  images = len_images(config)
  judges = {
      name: _judge(name, config.rewards[name], mesh, images, policy.size)
      for name in config.rewards
      if name not in _ON_HOST
  }
  base = _placed(mesh, policy.family, base)
  loop = Loop(config, mesh, policy, {})
  return Shapes(
      loop=loop,
      base=base,
      state=loop.shapes(base),
      text=_batch(mesh, text),
      judges=judges,
  )


def compile_all(config, mesh, held=None):
  """Compiles the programs one after the other.

  Args:
    config: of an `online` run.
    mesh: entered.
    held: Shapes, if they are there already.

  Yields:
    (name, Program).
  """
  held = held or shapes(config, mesh)
  whole = meshes.replicated(mesh)
  number = _struct((), jnp.int32, whole)
  weights = [judge[1] for judge in held.judges.values()]
  standing = _bytes((held.base, held.state, weights))
  programs = held.loop.programs()

  def run(name, arguments, lasting, passing=()):
    compiled = programs[name].lower(*arguments).compile()
    resident = standing - _bytes(lasting) + _bytes(passing)
    out = jax.tree.map(
        lambda x, s: _struct(x.shape, x.dtype, s),
        jax.eval_shape(programs[name], *arguments),
        compiled.output_shardings,
    )
    return Program(compiled, 1, resident), out

  state = held.state
  steps = jnp.zeros(config.rollout.steps + 1)
  times = _struct(steps.shape, steps.dtype, whole)
  rollout, drawn = run(
      "rollout",
      (held.base, state.params, held.text, times, state.key, number, number),
      (held.base, state.params),
  )
  yield "rollout", rollout
  trajectory, cond, images = drawn

  signals = {}
  for name, (score, weight, inputs, calls) in held.judges.items():
    compiled = score.lower(weight, *inputs).compile()
    resident = standing - _bytes(weight) + _bytes(drawn)
    yield f"reward_{name}", Program(compiled, calls, resident)
  for name in config.rewards:
    rows = _struct((len_images(config),), jnp.float32, whole)
    signals[name] = Signals(scalar=rows, sigma=rows)

  labels = _struct((len_images(config),), jnp.int32, whole)
  ids = held.text[0] if "init" in config else None
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


def len_images(config):
  """Images of an iteration."""
  return config.prompts.per_step * config.rollout.group


def _scenes(config):
  """(policy, base weights, text) of the embedded world."""
  policy, base = load_policy(config.init, config.lora, config.remat)
  count = (len_images(config), config.prompts.max_tokens)
  text = (_struct(count, jnp.int32), _struct(count, bool))
  return policy, base, text


def _images(config):
  """(policy, base weights, text) of a downloaded backbone."""
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
  rows = len_images(config)
  text = [
      _struct((rows, *x.shape[1:]), x.dtype)
      for x in (base["empty"]["text"], base["empty"]["pooled"])
  ]
  return policy, base, tuple(text)


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
  model, reading = SpatialScoreConfig(sizes), _READING
  if pathlib.Path(config.weights).expanduser().exists():
    model, reading, _ = qwen.load(config.weights, sizes)

  def init(key):
    base = spatial_score.init(model, key)
    return base, spatial_score.init_trainable(model, key, base)

  base, trained = jax.eval_shape(init, jax.random.key(0))
  weights = tuple(
      _placed(mesh, "qwen_vl", tree)
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


def _placed(mesh, family, tree):
  return jax.tree.map(
      lambda x, s: _struct(x.shape, x.dtype, s),
      tree,
      partition.shardings(mesh, family, tree),
  )


def _batch(mesh, tree):
  rows = meshes.batched(mesh)
  return jax.tree.map(lambda x: _struct(x.shape, x.dtype, rows), tree)


def _bytes(tree):
  """Bytes that a device holds of a tree of placed ShapeDtypeStructs."""
  return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
  )
