"""The rules cover every leaf of every family, and refuse what does not fit."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from ml_collections import config_dict

from spatialrl.io import assets
from spatialrl.models import actor, autoencoder, checker, spatial_score
from spatialrl.models.diffusion import DiffusionPolicy
from spatialrl.models.flux import Flux, FluxConfig
from spatialrl.models.lora import LoRAConfig
from spatialrl.models.mmdit import MMDiT, MMDiTConfig
from spatialrl.parallel import mesh as meshes
from spatialrl.parallel import partition
from spatialrl.train.state import init_state, make_optimizer

SD35 = MMDiTConfig(
  width=1536, depth=24, heads=24, channels=16, dual_layers=13, patch=2,
  text_width=4096, pooled_width=2048, position_table=384, position_base=64,
)
EVERYWHERE = LoRAConfig(rank=32, targets=(".*",))
OPTIMIZER = make_optimizer(
  config_dict.ConfigDict({
    "learning_rate": 1e-3, "schedule": "constant", "warmup": 1, "b2": 0.99,
    "weight_decay": 0.0, "max_norm": 1.0,
  }),
  updates=1,
)


def abstract(*shape):
  kinds = (AxisType.Auto,) * len(meshes.AXES)
  return AbstractMesh(shape, meshes.AXES, axis_types=kinds)


def started(params):
  """Everything that a run holds of what it trains."""
  stats = {"moments": jnp.zeros((3, 2))}
  return jax.eval_shape(
    lambda p: init_state(p, OPTIMIZER, 0, stats, keeps_old=True), params
  )


@functools.cache
def diffusion(kind):
  """Shapes of a published backbone: (base, state of its adapters)."""
  config, scale = (FluxConfig(), 3.5) if kind == "flux" else (SD35, None)
  network = (Flux if kind == "flux" else MMDiT)(config)
  coder = autoencoder.AutoencoderConfig()
  pooled = jnp.zeros((1, config.pooled_width))
  empty = {"text": jnp.zeros((1, 77, 4096)), "pooled": pooled}

  def init(key):
    inputs = [jnp.zeros((1, 64, 64, 16)), jnp.ones(1), *empty.values()]
    extra = {} if scale is None else {"guidance": jnp.ones(1)}
    return {
      "network": network.init(key, *inputs, **extra)["params"],
      "autoencoder": autoencoder.init(coder, key),
      "empty": empty,
    }

  key = jax.random.key(0)
  base = jax.eval_shape(init, key)
  policy = DiffusionPolicy(512, config, coder, scale, EVERYWHERE)
  adapters = jax.eval_shape(policy.init_trainable, key, base)
  whole = jax.eval_shape(
    dataclasses.replace(policy, lora=None).init_trainable, key, base
  )
  return base, started(adapters), started(whole)


@functools.cache
def qwen():
  config, key = spatial_score.SpatialScoreConfig(), jax.random.key(0)
  base = jax.eval_shape(functools.partial(spatial_score.init, config), key)
  trained = jax.eval_shape(
    functools.partial(spatial_score.init_trainable, config), key, base
  )
  return base, started(trained)


def scenes():
  loaded = {
    name: assets.load(f"{name}.safetensors")[0]
    for name in ("policy", "reward", "heads")
  }
  return loaded, started(loaded["policy"]["mmdit"]), started(loaded["reward"])


def reflect():
  key = jax.random.key(0)
  return [
    started(jax.eval_shape(functools.partial(part.init, sizes), key))
    for part, sizes in (
      (checker, checker.CheckerConfig()), (actor, actor.ActorConfig())
    )
  ]


TREES = {
  "scenes": scenes,
  "reflect": reflect,
  "sd3": functools.partial(diffusion, "sd3"),
  "flux": functools.partial(diffusion, "flux"),
  "autoencoder": lambda: [diffusion("sd3")[0]["autoencoder"]],
  "qwen_vl": qwen,
}


@pytest.mark.parametrize("family", partition.RULES)
def test_every_leaf_has_a_rule_and_fits_the_usual_meshes(family):
  for shape in ((16, 1, 1), (4, 4, 1), (1, 8, 1), (2, 2, 2)):
    for tree in TREES[family]():
      rows = partition.table(abstract(*shape), family, tree)
      assert len(rows) == len(jax.tree.leaves(tree))


@pytest.mark.parametrize("family", ["sd3", "flux", "qwen_vl"])
def test_what_is_large_is_split_over_all_devices(family):
  for tree in TREES[family]():
    whole = partition.table(abstract(1, 1, 1), family, tree)
    rows = partition.table(abstract(1, 16, 1), family, tree)
    total = sum(row.bytes for row in whole)
    large = [
      (row, part)
      for row, part in zip(whole, rows, strict=True)
      # The head of SpatialScore stays whole.
      if row.bytes > 0.005 * total and "head" not in row.path.split("/")
    ]
    assert large
    for row, part in large:
      assert part.bytes * 16 == row.bytes, part


def test_a_layer_axis_is_never_split():
  for family in ("sd3", "flux"):
    for tree in diffusion(family):
      for row in partition.table(abstract(1, 4, 4), family, tree):
        if len(row.shape) == 3 and "blocks" in row.path:
          assert row.spec[:1] in ((), (None,)), row


@pytest.mark.parametrize(
  ("family", "path", "shape", "spec"),
  [
    ("flux", "double_blocks/image_q/kernel", (19, 64, 64),
     P(None, "fsdp", "tensor")),
    ("flux", "single_blocks/down/kernel", (38, 64, 64),
     P(None, "tensor", "fsdp")),
    ("flux", "image_modulations/kernel", (19, 64, 64),
     P(None, None, "fsdp")),
    ("sd3", "opt_state/1/0/mu/blocks/image_out/kernel", (3, 64, 64),
     P(None, "tensor", "fsdp")),
    ("sd3", "ema/last_block/image_q/a", (64, 4), P("fsdp")),
    ("sd3", "network/proj_out/kernel", (64, 64), P("fsdp")),
    ("scenes", "params/autoencoder/encoder/mid/attention_q/kernel", (64, 64),
     P()),
    ("qwen_vl", "vision/blocks/down/kernel", (32, 64, 64),
     P(None, None, "fsdp")),
  ],
)
def test_the_first_rule_that_matches_counts(family, path, shape, spec):
  assert partition.sharding(abstract(2, 2, 2), family, path, shape).spec == spec


def test_axes_of_one_device_are_left_out():
  path, shape = "blocks/image_q/kernel", (3, 64, 64)
  for mesh, spec in (((8, 1, 1), P()), ((4, 2, 1), P(None, "fsdp"))):
    assert partition.sharding(abstract(*mesh), "sd3", path, shape).spec == spec


def test_a_table_counts_what_one_device_holds():
  tree = {"blocks": {"q": {"kernel": jnp.zeros((3, 8, 4), jnp.bfloat16)}}}
  (row,) = partition.table(abstract(2, 2, 2), "sd3", tree)
  assert row.bytes == math.prod((3, 4, 2)) * 2


def test_a_leaf_without_a_rule_is_named():
  with pytest.raises(ValueError, match="'flux'.* matches new/kernel, of shape"):
    partition.sharding(abstract(1, 1, 1), "flux", "new/kernel", (3, 4))


def test_an_axis_that_does_not_divide_is_named_with_leaf_and_dimension():
  with pytest.raises(ValueError, match=r"^blocks/q/kernel .*size 3 .*ion 1"):
    partition.sharding(abstract(1, 3, 1), "sd3", "blocks/q/kernel", (3, 64, 6))


def test_a_rule_for_more_dimensions_than_there_are_is_refused():
  with pytest.raises(ValueError, match="for 2 dimensions or more"):
    partition.sharding(abstract(1, 1, 1), "sd3", "blocks/q/kernel", (8,))
