"""SpatialScore on Qwen2.5-VL: what is trained, what is read, what is not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.data.qwen_inputs import QwenInputs, patches, rope_positions
from spatialrl.models import spatial_score
from spatialrl.models.lora import LoRAConfig
from spatialrl.models.qwen_vl import QwenVL, QwenVLConfig, VisionConfig
from spatialrl.models.spatial_score import SpatialScoreConfig

IMAGE, REWARD = 30, 31
CONFIG = SpatialScoreConfig(
  backbone=QwenVLConfig(
    vision=VisionConfig(
      width=16, hidden=24, depth=2, heads=2, out=16, full_blocks=(1,), patch=2,
      window=4,
    ),
    vocabulary=32, width=16, hidden=24, depth=2, heads=2, kv_heads=1,
    sections=(1, 1, 2), image_token=IMAGE,
  ),
  lora=LoRAConfig(rank=2, alpha=4.0, targets=spatial_score.PROJECTIONS),
  reward_token=REWARD,
  head=(8,),
)
# Two rows of different length; an image of 8 x 8 pixels is four tokens.
IDS = np.int32([
  [1, IMAGE, IMAGE, IMAGE, IMAGE, 2, 3, 4, REWARD, 0],
  [1, IMAGE, IMAGE, IMAGE, IMAGE, 5, REWARD, 0, 0, 0],
])
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype("f4")


def inputs(images=IMAGES, ids=IDS, mask=IDS > 0):
  grids = ((4, 4),) * 2
  positions = rope_positions(ids, mask, grids, image_token=IMAGE)
  pixels = patches(images, (8, 8), patch=2)
  return QwenInputs(ids, mask, positions, pixels, grids)


def spread(tree, scale=0.3):
  """A tree of random numbers of the same shapes."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), tree
  )


@pytest.fixture(scope="module")
def params():
  init = functools.partial(spatial_score.init, CONFIG)
  return spread(jax.eval_shape(init, jax.random.key(0)))


@pytest.fixture(scope="module")
def trainable(params):
  """As training starts."""
  init = jax.jit(lambda *args: spatial_score.init_trainable(CONFIG, *args))
  return init(jax.random.key(1), params)


@pytest.fixture(scope="module")
def trained(trainable):
  """As if after some training: no leaf is trivial."""
  return spread(trainable)


@jax.jit
def log_score(params, trainable, inputs):
  return spatial_score.log_score(CONFIG, params, trainable, inputs)


@jax.jit
def gradient(params, trainable, images):
  def loss(trainable, images):
    mu, log_sigma = log_score(params, trainable, inputs(images=images))
    return mu.sum() + log_sigma.sum()

  return jax.grad(loss, (0, 1))(trainable, images)


def flat(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def largest(tree):
  return {path: np.abs(leaf).max() for path, leaf in flat(tree).items()}


def test_the_trained_leaves_are_these(params, trainable):
  shapes = {path: x.shape for path, x in flat(trainable).items()}
  wide = {"q": 16, "k": 8, "v": 8, "out": 16, "gate": 24, "up": 24, "down": 16}
  expected = {"token": (16,)}
  for name, out in wide.items():
    into = 24 if name == "down" else 16
    expected[f"lora/layers/{name}/a"] = (2, into, 2)
    expected[f"lora/layers/{name}/b"] = (2, 2, out)
  for name, (into, out) in {"hidden_0": (16, 8), "out": (8, 2)}.items():
    expected[f"head/{name}/kernel"] = (into, out)
    expected[f"head/{name}/bias"] = (out,)
  assert shapes == expected
  assert "lm_head" not in params and not set(params) & {"lora", "head"}
  np.testing.assert_allclose(
    trainable["token"], params["words"].mean(0), atol=1e-6
  )


def test_targets_choose_the_layers_of_either_tower(params):
  chosen = LoRAConfig(rank=3, targets=("vision/blocks/qkv", "layers/v"))
  config = dataclasses.replace(CONFIG, lora=chosen)
  made = jax.eval_shape(
    functools.partial(spatial_score.init_trainable, config),
    jax.random.key(1),
    params,
  )
  shapes = {path: x.shape for path, x in flat(made["lora"]).items()}
  assert shapes == {
    "vision/blocks/qkv/a": (2, 16, 3),
    "vision/blocks/qkv/b": (2, 3, 48),
    "layers/v/a": (2, 16, 3),
    "layers/v/b": (2, 3, 8),
  }


def test_the_gradient_reaches_every_leaf_and_pixel(params, trainable, trained):
  first, _ = gradient(params, trainable, IMAGES)
  still = {path for path, size in largest(first).items() if size == 0}
  assert still == {path for path in flat(first) if path.endswith("/a")}
  later, pixels = gradient(params, trained, IMAGES)
  assert min(largest(later).values()) > 0
  assert (np.abs(pixels).max(-1) > 0).all()


def test_the_adapters_start_at_nothing(params, trainable):
  """The state at the reward token is the base's, with the token's row there."""
  given = inputs()
  replaced = params | {"words": params["words"].at[REWARD].set(
    trainable["token"]
  )}
  network = QwenVL(CONFIG.backbone)

  @jax.jit
  def states(params):
    x = network.apply({"params": params}, given, method="embed")
    return network.apply({"params": params}, x, given, method="states")

  state = states(replaced)[np.arange(2), [8, 6]]
  head = trainable["head"]
  hidden = jnp.maximum(
    state @ head["hidden_0"]["kernel"] + head["hidden_0"]["bias"][None], 0
  )
  out = hidden @ head["out"]["kernel"] + head["out"]["bias"][None]
  mu, log_sigma = log_score(params, trainable, given)
  np.testing.assert_allclose(mu, out[:, 0], atol=1e-5)
  np.testing.assert_allclose(log_sigma, 4 * jnp.tanh(out[:, 1] / 4), atol=1e-5)


def test_the_token_stands_in_for_its_row_of_the_table(params, trained):
  ours = log_score(params, trained, inputs())
  words = params["words"].at[REWARD].set(np.nan)
  other = log_score(params | {"words": words}, trained, inputs())
  np.testing.assert_array_equal(ours, other)
  moved = trained | {"token": trained["token"] + 1.0}
  mu, _ = log_score(params, moved, inputs())
  assert np.abs(mu - ours[0]).min() > 1e-4


def test_padding_on_either_side_changes_nothing(params, trained):
  expected = log_score(params, trained, inputs())
  mask = IDS > 0
  for shift in (0, 1):  # the second row of `left` starts with padding
    ids, seen = np.zeros_like(IDS), np.zeros_like(mask)
    for row in range(2):
      n = mask[row].sum()
      at = slice(10 - n - shift * (1 - row), None)
      ids[row, at][:n], seen[row, at][:n] = IDS[row, :n], True
    ids = np.where(seen, ids, 7)
    ours = log_score(params, trained, inputs(ids=ids, mask=seen))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_image_words_and_places_all_count(params, trained):
  mu, _ = log_score(params, trained, inputs())
  swapped = IDS[:, [0, 1, 2, 3, 4, 6, 5, 7, 8, 9]]
  other, _ = log_score(params, trained, inputs(ids=swapped))
  assert np.abs(mu - other)[0] > 1e-4
  other, _ = log_score(params, trained, inputs(images=IMAGES[:, :, ::-1]))
  assert np.abs(mu - other).min() > 1e-4
  other, _ = log_score(params, trained, inputs(images=IMAGES[::-1]))
  assert np.abs(mu - other).min() > 1e-4


def test_half_precision_scores_and_gradients_are_float32(params, trained):
  half = dataclasses.replace(
    CONFIG, backbone=dataclasses.replace(CONFIG.backbone, dtype="bfloat16")
  )
  base = jax.tree.map(lambda w: w.astype("bfloat16"), params)

  @jax.jit
  def run(trainable):
    def loss(trainable):
      out = spatial_score.log_score(half, base, trainable, inputs())
      return sum(x.sum() for x in out), out

    return jax.grad(loss, has_aux=True)(trainable)

  slopes, out = run(trained)
  assert {x.dtype for x in jax.tree.leaves((slopes, out))} == {
    jnp.dtype("float32")
  }
  exact = log_score(params, trained, inputs())
  error = np.abs(np.subtract(out, exact)).max()
  assert 0 < error < 0.05 * np.abs(exact).max()


def test_sigma_is_the_exponential(params, trained):
  score = jax.jit(functools.partial(spatial_score.score, CONFIG))
  mu, sigma = score(params, trained, inputs())
  expected_mu, log_sigma = log_score(params, trained, inputs())
  np.testing.assert_allclose(mu, expected_mu, atol=1e-6)
  np.testing.assert_allclose(sigma, np.exp(log_sigma), rtol=1e-5)


def test_nonsense_is_refused(params):
  none = dataclasses.replace(CONFIG, lora=LoRAConfig(targets=("layer/q",)))
  with pytest.raises(ValueError, match="lora.targets is .*layer/q.*no dense"):
    jax.eval_shape(
      lambda key: spatial_score.init_trainable(none, key, params),
      jax.random.key(0),
    )
  with pytest.raises(ValueError, match="reward_token is 32; .* 0 to 31"):
    dataclasses.replace(CONFIG, reward_token=32)
  with pytest.raises(ValueError, match="30, which is the image token"):
    dataclasses.replace(CONFIG, reward_token=IMAGE)
