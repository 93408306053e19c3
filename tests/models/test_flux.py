"""What must hold for any weights of Flux; its numbers are in parity/."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.models import flux, lora

CONFIG = flux.FluxConfig(
  width=24,
  doubles=2,
  singles=3,
  heads=2,
  channels=3,
  axes=(4, 4, 4),
  text_width=8,
  pooled_width=6,
)
B, L = 2, 5


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


GIVEN = {
  "x": normal(1, B, 4, 6, 3),
  "t": np.float32([0.3, 0.9]),
  "text": normal(2, B, L, 8),
  "pooled": normal(3, B, 6),
  "guidance": np.float32([3.5, 1.0]),
}
WORDS = np.arange(L)[None] == np.array([[1], [0]])


def shapes(config=CONFIG, adapter=None, **change):
  def init(key):
    with lora.adapted(adapter):
      return flux.Flux(config).init(key, **GIVEN | change)

  return jax.eval_shape(init, jax.random.key(0))


def filled(tree, scale=0.3):
  leaves, structure = jax.tree.flatten(tree)
  return jax.tree.unflatten(
    structure, [scale * normal(i, *x.shape) for i, x in enumerate(leaves)]
  )


@pytest.fixture(scope="module")
def params():
  """Random weights, with attention that has an opinion."""

  def sharp(path, leaf):
    return 8 * leaf if "_norm" in jax.tree_util.keystr(path) else leaf

  weights = filled(shapes()["params"])
  return jax.tree_util.tree_map_with_path(sharp, weights)


@functools.partial(jax.jit, static_argnames=("config", "blocks"))
def run(params, given, config, blocks):
  return flux.Flux(config).apply({"params": params}, blocks=blocks, **given)


def apply(params, config=CONFIG, blocks=(), **change):
  return run(params, GIVEN | change, config, blocks)


@pytest.fixture(scope="module")
def velocity(params):
  return apply(params)


@pytest.fixture(scope="module")
def maps(params):
  """(velocity, map) for some choices of blocks: a double and a single one."""
  return {
    blocks: apply(params, words=WORDS, blocks=blocks)
    for blocks in ((0,), (4,), (0, 4))
  }


def test_recomputing_blocks_changes_no_gradient(params):
  def loss(x, remat):
    network = flux.Flux(dataclasses.replace(CONFIG, remat=remat))
    return jnp.sum(network.apply({"params": params}, **GIVEN | {"x": x}) ** 2)

  grad = jax.grad(loss)
  ours, plain = (
    jax.jit(functools.partial(grad, remat=remat))(GIVEN["x"])
    for remat in (True, False)
  )
  np.testing.assert_allclose(ours, plain, atol=1e-5 * np.abs(plain).max())
  assert "remat" in str(jax.make_jaxpr(lambda x: grad(x, True))(GIVEN["x"]))


def test_blocks_and_their_modulations_are_stacked():
  tree = shapes()["params"]
  width = CONFIG.width
  kernels = {
    name: tree[name]["kernel"].shape
    for name in ("image_modulations", "text_modulations", "modulations")
  }
  assert kernels == {
    "image_modulations": (2, width, 6 * width),
    "text_modulations": (2, width, 6 * width),
    "modulations": (3, width, 3 * width),
  }
  single = {name: set(leaves) for name, leaves in tree["single_blocks"].items()}
  assert single["down"] == {"kernel"}  # the bias is that of "out"
  assert tree["single_blocks"]["down"]["kernel"].shape == (3, 4 * width, width)


def test_adapters_reach_blocks_and_modulations(params, velocity):
  targets = (r"(double|single)_blocks/(image_|text_)?[qkv]", r".*modulations")
  adapter = lora.LoRAConfig(rank=2, alpha=2.0, targets=targets)
  adapted = shapes(adapter=adapter)
  assert adapted["params"] == shapes()["params"]
  tree = adapted[lora.COLLECTION]
  assert set(tree) == {
    "double_blocks",
    "single_blocks",
    "image_modulations",
    "text_modulations",
    "modulations",
  }
  assert tree["modulations"]["a"].shape == (3, CONFIG.width, 2)

  @jax.jit
  def adapted_velocity(weights):
    variables = {"params": params, lora.COLLECTION: weights}
    with lora.adapted(adapter):
      return flux.Flux(CONFIG).apply(variables, **GIVEN)

  weights = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
  np.testing.assert_allclose(adapted_velocity(weights), velocity, atol=1e-4)
  weights["modulations"] = filled(tree["modulations"])
  assert np.abs(adapted_velocity(weights) - velocity).max() > 1e-2


def test_guidance_matters(params, velocity):
  other = apply(params, guidance=np.float32([3.5, 2.0]))
  np.testing.assert_allclose(other[0], velocity[0], atol=1e-5)
  assert np.abs(other[1] - velocity[1]).max() > 1e-3


def test_another_attention_gives_the_same(params, velocity):
  config = dataclasses.replace(CONFIG, attention="splash")
  np.testing.assert_allclose(apply(params, config), velocity, atol=1e-4)


def test_maps_of_blocks_are_averaged_beside_the_same_velocity(maps, velocity):
  (_, double), (_, single) = maps[(0,)], maps[(4,)]
  v, both = maps[(0, 4)]
  np.testing.assert_allclose(v, velocity, atol=1e-4)
  assert both.shape == (B, 4, 6)
  np.testing.assert_allclose(both.mean((1, 2)), 1.0, rtol=1e-5)
  np.testing.assert_allclose(both, (double + single) / 2, rtol=1e-4)
  assert np.abs(double - single).max() > 1e-2
  # A token is a square of 2 x 2 positions.
  np.testing.assert_array_equal(both[:, ::2, ::2], both[:, 1::2, 1::2])


def test_the_map_of_the_first_block_is_a_word_map(params, maps):
  """Computed again by hand from what enters block 0."""

  @jax.jit
  def entering(params):
    _, between = flux.Flux(CONFIG).apply(
      {"params": params}, **GIVEN, mutable="intermediates"
    )
    between = between["intermediates"]
    return {name: between[name][0] for name in ("image", "text", "vector")}

  between = jax.device_get(entering(params))
  vector = between["vector"] / (1 + np.exp(-between["vector"]))
  weights = jax.tree.map(lambda w: w[0], params["double_blocks"])
  heads = {}
  for stream, part in (("image", "q"), ("text", "k")):
    change = params[f"{stream}_modulations"]
    shift, scale = np.split(
      vector @ change["kernel"][0] + change["bias"][0], 6, -1
    )[:2]
    x = between[stream]
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    x = x * (1 + scale[:, None]) + shift[:, None]
    dense = weights[f"{stream}_{part}"]
    x = (x @ dense["kernel"] + dense["bias"]).reshape(B, -1, 2, 12)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True))
    heads[stream] = x * weights[f"{stream}_{part}_norm"]["scale"]
  cos, sin = flux.rotary(2, 3, CONFIG.axes)
  turn = (cos + 1j * sin)[None, :, None, ::2]
  turned = (heads["image"][..., ::2] + 1j * heads["image"][..., 1::2]) * turn
  query = np.stack([turned.real, turned.imag], -1).reshape(B, 6, 2, 12)
  logits = np.einsum("bnhd,blhd->bhnl", query, heads["text"]) / np.sqrt(12)
  share = np.exp(logits)
  share = (share / share.sum(2, keepdims=True)).mean(1)
  share = share[np.arange(B), :, [1, 0]]
  share = share / share.mean(1, keepdims=True)
  _, seen = maps[(0,)]
  np.testing.assert_allclose(seen[:, ::2, ::2].reshape(B, 6), share, rtol=1e-3)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"axes": (4, 4, 6)}, r"axes is \(4, 4, 6\); .* 24 / 2"),
    ({"axes": (3, 5, 4)}, r"axes is \(3, 5, 4\); .* even"),
    ({"singles": 0}, "doubles is 2 and singles 0"),
    ({"attention": "flash"}, "attention is 'flash'; .* 'splash', 'auto'"),
    ({"dtype": "half"}, "dtype is 'half'; allowed are float32"),
  ],
)
def test_sizes_that_cannot_work_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"guidance": None}, "guidance is missing; .* guidance True"),
    ({"x": normal(1, B, 4, 5, 3)}, "latents are 4 x 5; .* multiples of 2"),
    ({"text": normal(1, B, L, 7)}, "text_width is 8; .* have 7"),
    ({"pooled": normal(1, B, 7)}, "pooled_width is 6; .* have 7"),
    ({"words": WORDS, "blocks": (5,)}, r"blocks is \(5,\); .* 0 to 4"),
    ({"words": WORDS}, r"blocks is \(\); .* 0 to 4"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    shapes(**change)


def test_guidance_that_no_weight_reads_is_refused():
  config = dataclasses.replace(CONFIG, guidance=False)
  with pytest.raises(ValueError, match="guidance is given; .* guidance False"):
    shapes(config)
  assert "guidance_embed" not in shapes(config, guidance=None)["params"]
