"""The reward model sees its image and its words, and answers in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.models import reward_model

CONFIG = reward_model.RewardConfig(
  vocabulary=12, size=8, patch=4, max_tokens=8, width=16, depth=2, heads=2
)
IDS = np.int32([[3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 2, 0]])
MASK = IDS > 0
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype("f4")


@pytest.fixture(scope="module")
def params():
  return jax.jit(lambda key: reward_model.init(CONFIG, key))(jax.random.key(0))


@jax.jit
def log_score(params, images, ids, mask):
  return reward_model.log_score(CONFIG, params, images, ids, mask)


def test_ids_behind_the_mask_change_no_bit(params):
  first = log_score(params, IMAGES, IDS, MASK)
  second = log_score(params, IMAGES, np.where(MASK, IDS, 11), MASK)
  np.testing.assert_array_equal(first, second)


def test_padding_is_the_same_as_fewer_tokens(params):
  first = log_score(params, IMAGES, IDS, MASK)
  second = log_score(params, IMAGES, IDS[:, :5], MASK[:, :5])
  np.testing.assert_allclose(first, second, atol=1e-5)


def test_image_words_and_their_order_all_count(params):
  mu, _ = log_score(params, IMAGES, IDS, MASK)
  for images, ids in (
    (IMAGES[:, :, ::-1], IDS),
    (IMAGES, np.where(MASK, 11, IDS)),
    (IMAGES, IDS[:, [1, 0, 2, 3, 4, 5]]),
  ):
    other, _ = log_score(params, images, ids, MASK)
    assert np.abs(mu - other).min() > 1e-3


def test_mean_and_log_sigma_are_float32_whatever_the_weights(params):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  images = jnp.asarray(IMAGES, jnp.bfloat16)
  state, patches = jax.eval_shape(
    lambda p: reward_model.Backbone(CONFIG).apply(
      {"params": p["backbone"]}, images, IDS, MASK
    ),
    half,
  )
  assert state.shape == (2, CONFIG.width)
  assert patches.shape == (2, 4, CONFIG.width)
  for out in jax.eval_shape(log_score, half, images, IDS, MASK):
    assert out.dtype == jnp.float32 and out.shape == (2,)


def test_sigma_is_the_bounded_exponential(params):
  wide = jax.tree.map(lambda x: x, params)
  wide["head_out"]["bias"] = jnp.float32([0.0, -100.0])
  _, log_sigma = log_score(wide, IMAGES, IDS, MASK)
  np.testing.assert_allclose(log_sigma, -4.0, atol=1e-3)
  mu, sigma = reward_model.score(CONFIG, params, IMAGES, IDS, MASK)
  expected_mu, log_sigma = log_score(params, IMAGES, IDS, MASK)
  np.testing.assert_allclose(mu, expected_mu, atol=1e-5)
  np.testing.assert_allclose(sigma, np.exp(log_sigma), rtol=1e-5)


def test_sizes_survive_json_and_nonsense_is_refused(params):
  assert reward_model.RewardConfig.from_json(CONFIG.to_json()) == CONFIG
  with pytest.raises(ValueError, match="patch is 3; it must divide .* 8"):
    reward_model.RewardConfig(vocabulary=12, size=8, patch=3)
  with pytest.raises(ValueError, match="heads is 3; it must divide width 16"):
    reward_model.RewardConfig(vocabulary=12, size=8, width=16, heads=3)
  assert reward_model.count({"a": np.zeros((2, 3)), "b": np.zeros(4)}) == 10
