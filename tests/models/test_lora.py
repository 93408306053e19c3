"""Adapters: where they sit, that they start at zero, and that they learn."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.models import lora
from spatialrl.models.lora import LoRAConfig
from spatialrl.models.mmdit import MMDiT, MMDiTConfig
from spatialrl.models.policy import Policy
from spatialrl.models.text_encoder import TextEncoderConfig

RANK, WIDTH = 3, 16
BASE = Policy(
  size=16,
  fold=8,
  prediction="velocity",
  mmdit=MMDiTConfig(
    width=WIDTH, depth=5, heads=2, channels=192, dual_layers=2
  ),
  text=TextEncoderConfig(
    vocabulary=12, max_tokens=4, width=WIDTH, depth=1, heads=2
  ),
)
ADAPTED = dataclasses.replace(BASE, lora=LoRAConfig(rank=RANK, alpha=6.0))
IDS = np.int32([[3, 4, 0, 0], [6, 7, 8, 9]])
T = np.float32([0.9, 0.4])


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X = normal(100, 2, 2, 2, 192)


def filled(tree, scale):
  """A tree of random numbers, from one of shapes."""
  leaves, structure = jax.tree.flatten(tree)
  return jax.tree.unflatten(
    structure, [scale * normal(i, *x.shape) for i, x in enumerate(leaves)]
  )


@pytest.fixture(scope="module")
def params():
  return filled(jax.eval_shape(BASE.init, jax.random.key(0)), 0.2)


@pytest.fixture(scope="module")
def adapters(params):
  return jax.jit(ADAPTED.init_trainable)(jax.random.key(1), params)


@jax.jit
def adapted_velocity(params, adapters):
  cond = ADAPTED.encode(params, IDS, IDS > 0)
  return ADAPTED.velocity(params, adapters, X, T, cond)


@jax.jit
def gradient(params, adapters):
  def loss(adapters):
    return jnp.sum(adapted_velocity(params, adapters) ** 2)

  return jax.grad(loss)(adapters)


def paths(tree):
  """Paths of the adapted layers: those of the leaves without a or b."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {"/".join(key.key for key in path[:-1]) for path, _ in flat}


def test_base_parameters_keep_their_paths_and_shapes(params):
  def init(adapter):
    cond = BASE.encode(params, IDS, IDS > 0)
    with lora.adapted(adapter):
      return MMDiT(BASE.mmdit).init(
        jax.random.key(0), X, T, cond.text, cond.pooled, cond.mask
      )

  bare = jax.eval_shape(lambda: init(None))
  with_adapters = jax.eval_shape(lambda: init(ADAPTED.lora))
  assert set(bare) == {"params"}
  assert set(with_adapters) == {"params", lora.COLLECTION}
  assert bare["params"] == with_adapters["params"]


def test_only_targeted_layers_are_adapted(adapters):
  plain = {f"{s}_{p}" for s in ("image", "text") for p in ("q", "k", "v")}
  expected = {
    f"{stack}/{layer}"
    for stack in ("dual_blocks", "blocks", "last_block")
    for layer in plain | {"image_out"}
  }
  expected |= {f"{stack}/text_out" for stack in ("dual_blocks", "blocks")}
  expected |= {f"dual_blocks/image2_{p}" for p in ("q", "k", "v", "out")}
  assert paths(adapters) == expected


def test_targets_choose_the_layers(params):
  chosen = dataclasses.replace(
    ADAPTED, lora=LoRAConfig(rank=RANK, targets=("blocks/image_ff/up", "p.*"))
  )
  tree = jax.eval_shape(chosen.init_trainable, jax.random.key(1), params)
  expected = {"blocks/image_ff/up", "patch_embed", "proj_out"}
  expected |= {"pooled_embed/up", "pooled_embed/down"}
  assert paths(tree) == expected
  assert tree["blocks"]["image_ff"]["up"]["b"].shape == (2, RANK, 4 * WIDTH)


def test_adapters_are_stacked_like_their_layers(adapters):
  stacks = {"dual_blocks": (2,), "blocks": (2,), "last_block": ()}
  for stack, layers in stacks.items():
    layer = adapters[stack]["image_q"]
    assert layer["a"].shape == (*layers, WIDTH, RANK)
    assert layer["b"].shape == (*layers, RANK, WIDTH)
  first, second = adapters["blocks"]["image_q"]["a"]
  assert np.abs(first - second).max() > 1e-2


def test_the_start_is_the_base_to_the_last_bit(params, adapters):
  cond = BASE.encode(params, IDS, IDS > 0)
  base = jax.jit(BASE.velocity)(params, None, X, T, cond)
  reference = jax.jit(ADAPTED.velocity)(params, None, X, T, cond)
  np.testing.assert_array_equal(base, reference)
  ours = adapted_velocity(params, adapters)
  np.testing.assert_allclose(ours, base, atol=1e-5)
  moved = jax.tree.map(lambda w: w + 0.1, adapters)
  assert np.abs(adapted_velocity(params, moved) - base).max() > 1e-2


def test_an_adapter_adds_its_product_to_the_kernel(params, adapters):
  """(alpha / rank) a b, layer by layer: merged weights give the same."""
  moved = filled(adapters, 0.2)
  merged = jax.tree.map(lambda w: w, params)
  scale = ADAPTED.lora.alpha / RANK
  for path in paths(moved):
    stack, layer = path.split("/")
    weights = moved[stack][layer]
    kernel = merged["mmdit"][stack][layer]["kernel"]
    merged["mmdit"][stack][layer]["kernel"] = (
      kernel + scale * weights["a"] @ weights["b"]
    )
  cond = BASE.encode(params, IDS, IDS > 0)
  expected = jax.jit(BASE.velocity)(merged, None, X, T, cond)
  ours = adapted_velocity(params, moved)
  np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


def test_gradient_reaches_b_first_and_then_a(params, adapters):
  def sizes(tree, leaf):
    return {
      path: float(np.abs(_node(tree, path)[leaf]).max())
      for path in paths(tree)
      if path != "last_block/text_q"  # its queries are dropped
    }

  first = gradient(params, adapters)
  assert max(sizes(first, "a").values()) == 0
  assert min(sizes(first, "b").values()) > 0
  stepped = jax.tree.map(lambda w, g: w - 1e-3 * g, adapters, first)
  second = gradient(params, stepped)
  assert min(sizes(second, "a").values()) > 0
  assert np.abs(second["last_block"]["text_q"]["a"]).max() == 0


def _node(tree, path):
  for part in path.split("/"):
    tree = tree[part]
  return tree


def test_a_target_that_matches_nothing_is_named(params):
  none = dataclasses.replace(ADAPTED, lora=LoRAConfig(targets=("block/q",)))
  with pytest.raises(ValueError, match="lora.targets is .*block/q.*no dense"):
    jax.eval_shape(none.init_trainable, jax.random.key(1), params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapted_layer_keeps_its_dtype(dtype):
  layer = nn.Dense(4, dtype=dtype)
  with lora.adapted(LoRAConfig(2, 2.0, (".*",))):
    out, variables = layer.init_with_output(
      jax.random.key(0), jnp.ones((1, 3), dtype)
    )
  assert out.dtype == dtype
  assert variables[lora.COLLECTION]["a"].dtype == jnp.float32
