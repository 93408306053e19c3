"""The embedded policy: its codec, its velocity and its empty prompt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.models.lora import LoRAConfig
from spatialrl.models.mmdit import MMDiTConfig
from spatialrl.models.policy import Policy
from spatialrl.models.text_encoder import TextEncoderConfig

POLICY = Policy(
  size=16,
  fold=8,
  prediction="image",
  mmdit=MMDiTConfig(width=16, depth=2, heads=2, channels=192, remat=False),
  text=TextEncoderConfig(
    vocabulary=12, max_tokens=8, width=16, depth=1, heads=2
  ),
)
IDS = np.int32([[3, 4, 5, 0], [6, 7, 8, 9], [1, 2, 0, 0]])
MASK = IDS > 0


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def params():
  """Random weights without the zeros that a fresh network starts from."""
  leaves, tree = jax.tree.flatten(
    jax.eval_shape(POLICY.init, jax.random.key(0))
  )
  return jax.tree.unflatten(
    tree, [0.2 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)]
  )


@pytest.fixture(scope="module")
def cond(params):
  return jax.jit(POLICY.encode)(params, IDS, MASK)


X = normal(100, 3, 2, 2, 192)


def velocity(policy):
  return jax.jit(policy.velocity)


def test_an_image_predicted_is_a_velocity_on_the_straight_path(params, cond):
  plain = dataclasses.replace(POLICY, prediction="velocity")
  t = np.float32([1.0, 0.4, 0.01])  # the last below the bound of the divisor
  out = velocity(plain)(params, None, X, t, cond)
  expected = (X - out) / np.float32([1.0, 0.4, 0.05])[:, None, None, None]
  ours = velocity(POLICY)(params, None, X, t, cond)
  assert ours.dtype == jnp.float32 and ours.shape == X.shape
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_padding_and_its_length_never_change_the_velocity(params, cond):
  t, run = np.float32([0.9, 0.5, 0.2]), velocity(POLICY)
  expected = run(params, None, X, t, cond)
  other = jax.jit(POLICY.encode)(params, np.where(MASK, IDS, 11), MASK)
  np.testing.assert_array_equal(expected, run(params, None, X, t, other))
  wide = np.pad(IDS, ((0, 0), (0, 3)))
  longer = jax.jit(POLICY.encode)(params, wide, wide > 0)
  longer = run(params, None, X, t, longer)
  np.testing.assert_allclose(expected, longer, atol=1e-4)


def test_the_empty_prompt_has_no_real_token(params, cond):
  empty = POLICY.encode_empty(params, cond)
  assert jax.tree.map(np.shape, empty) == jax.tree.map(np.shape, cond)
  assert not np.any(empty.mask)
  np.testing.assert_array_equal(empty.text, 0.0)
  t = np.float32([0.9, 0.5, 0.2])
  difference = velocity(POLICY)(params, None, X, t, cond) - velocity(POLICY)(
    params, None, X, t, empty
  )
  assert np.abs(difference).max((1, 2, 3)).min() > 1e-2


def test_decoding_undoes_the_folding():
  images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3))
  images = images.astype(np.float32)
  latents = POLICY.to_latents({}, images)
  assert latents.shape == (3, *POLICY.latent_shape)
  np.testing.assert_array_equal(POLICY.decode({}, latents), images)
  np.testing.assert_array_equal(POLICY.decode({}, 3 * latents).max(), 1.0)


def test_a_latent_position_is_a_square_of_pixels():
  image = np.zeros((1, 16, 16, 3), np.float32)
  image[0, 3:6, 9:12] = 1.0  # inside the upper right square
  touched = np.abs(POLICY.to_latents({}, image)).max(-1)[0]
  np.testing.assert_array_equal(touched, [[0, 1], [0, 0]])


def test_all_weights_trained_start_as_the_base(params, cond):
  trainable = POLICY.init_trainable(jax.random.key(1), params)
  t, run = np.float32([0.9, 0.5, 0.2]), velocity(POLICY)
  base = run(params, None, X, t, cond)
  np.testing.assert_array_equal(base, run(params, trainable, X, t, cond))
  moved = jax.tree.map(lambda w: 1.1 * w, trainable)
  assert np.abs(base - run(params, moved, X, t, cond)).max() > 1e-2
  np.testing.assert_array_equal(base, run(params, None, X, t, cond))


def test_sizes_survive_json_without_the_adapters():
  adapted = dataclasses.replace(POLICY, lora=LoRAConfig(rank=2))
  assert Policy.from_json(adapted.to_json()) == POLICY
  assert hash(Policy.from_json(POLICY.to_json())) == hash(POLICY)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"fold": 5}, "fold is 5; it must divide the image size 16"),
    ({"prediction": "noise"}, "prediction is 'noise'; allowed are"),
    ({"fold": 4}, "channels is 192; 48 needed for fold 4"),
  ],
)
def test_sizes_that_cannot_work_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(POLICY, **change)


def test_soft_tokens_are_text_and_nothing_else_is_trained(params, cond):
  soft = dataclasses.replace(POLICY, soft_tokens=2)
  tokens = soft.init_trainable(jax.random.key(0), params)
  assert jax.tree.map(jnp.shape, tokens) == {"tokens": (2, 16)}
  t, run = np.float32([0.9, 0.5, 0.2]), velocity(soft)
  out = run(params, tokens, X, t, cond)
  assert out.shape == X.shape
  # The states of two words, put before the prompt by hand, say the same.
  words = jnp.broadcast_to(tokens["tokens"], (3, 2, 16))
  by_hand = dataclasses.replace(
    cond,
    text=jnp.concatenate([words, cond.text], 1),
    mask=np.pad(MASK, ((0, 0), (2, 0)), constant_values=True),
  )
  np.testing.assert_allclose(
    out, run(params, None, X, t, by_hand), rtol=1e-5, atol=1e-5
  )
  base = run(params, None, X, t, cond)
  plain = velocity(POLICY)(params, None, X, t, cond)
  np.testing.assert_array_equal(base, plain)
  assert np.abs(out - base).max() > 1e-3
