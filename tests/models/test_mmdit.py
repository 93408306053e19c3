"""What must hold for any weights of the MMDiT; its numbers are in parity/."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.models import attention as attention_room
from spatialrl.models import mmdit

# A stack of two dual blocks, a stack of two plain ones, and the last.
CONFIG = mmdit.MMDiTConfig(
  width=16, depth=5, heads=2, channels=3, dual_layers=2, remat=True
)
PLAIN = dataclasses.replace(CONFIG, depth=3, dual_layers=0)
B, L = 2, 5


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, T = normal(1, B, 2, 3, 3), np.float32([0.3, 0.9])
TEXT, POOLED = normal(2, B, L, 8), normal(3, B, 6)
MASK = np.arange(L)[None] < np.array([[3], [2]])


@pytest.fixture(scope="module")
def params():
  """Random weights without the zeros that a fresh network starts from."""
  fresh = jax.eval_shape(
    mmdit.MMDiT(CONFIG).init, jax.random.key(0), X, T, TEXT, POOLED
  )["params"]
  leaves, tree = jax.tree.flatten(fresh)
  return jax.tree.unflatten(
    tree, [0.3 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)]
  )


@jax.jit
def velocity(params, x, t, text, pooled, mask):
  return mmdit.MMDiT(CONFIG).apply({"params": params}, x, t, text, pooled, mask)


def test_text_behind_the_mask_changes_no_bit(params):
  other = np.where(MASK[..., None], TEXT, 100 * normal(4, *TEXT.shape))
  np.testing.assert_array_equal(
    velocity(params, X, T, TEXT, POOLED, MASK),
    velocity(params, X, T, other, POOLED, MASK),
  )


def test_text_before_the_mask_matters(params):
  other = np.where(MASK[..., None], normal(4, *TEXT.shape), TEXT)
  change = velocity(params, X, T, TEXT, POOLED, MASK) - velocity(
    params, X, T, other, POOLED, MASK
  )
  assert np.abs(change).max((1, 2, 3)).min() > 1e-2


def test_padding_is_the_same_as_fewer_tokens(params):
  padded = velocity(params, X, T, TEXT, POOLED, MASK)
  short = velocity(params, X, T, TEXT[:, :3], POOLED, MASK[:, :3])
  np.testing.assert_allclose(padded, short, atol=1e-5)


def test_an_open_mask_is_the_same_as_none(params):
  np.testing.assert_allclose(
    velocity(params, X, T, TEXT, POOLED, np.ones_like(MASK)),
    velocity(params, X, T, TEXT, POOLED, None),
    atol=1e-5,
  )


def test_recomputing_blocks_changes_neither_output_nor_gradient(params):
  params = {k: v for k, v in params.items() if k != "dual_blocks"}

  def loss(params, remat):
    config = dataclasses.replace(PLAIN, remat=remat)
    out = mmdit.MMDiT(config).apply({"params": params}, X, T, TEXT, POOLED)
    return jnp.sum(out**2), out

  grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  (grads, out), (grads2, out2) = grad(params, False), grad(params, True)
  np.testing.assert_allclose(out, out2, rtol=1e-5, atol=1e-6)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(grads2), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max() + 1e-7)
  saved = jax.make_jaxpr(lambda p: jax.grad(loss, has_aux=True)(p, True))
  assert "remat" in str(saved(params))  # else the two are the same program


def test_a_fresh_network_predicts_nothing():
  out, _ = jax.jit(mmdit.MMDiT(PLAIN).init_with_output)(
    jax.random.key(0), X, T, TEXT, POOLED
  )
  np.testing.assert_array_equal(out, np.zeros_like(X))


def test_equal_blocks_are_stacked_and_start_different():
  params = jax.eval_shape(
    mmdit.MMDiT(CONFIG).init, jax.random.key(0), X, T, TEXT, POOLED
  )["params"]
  shape = params["dual_blocks"]["image2_q"]["kernel"].shape
  assert shape == (2, CONFIG.width, CONFIG.width)
  assert params["blocks"]["image_q"]["kernel"].shape == shape
  assert "image2_q" not in params["blocks"] | params["last_block"]
  assert params["last_block"]["image_q"]["kernel"].shape == shape[1:]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"heads": 3}, "heads is 3; it must divide width 16"),
    ({"dual_layers": 5}, "dual_layers is 5; allowed are 0 to 4"),
    ({"dual_layers": -1}, "dual_layers is -1"),
    ({"position_table": 8}, "position_table is 8 and position_base 0"),
    ({"position_base": 8}, "position_table is 0 and position_base 8"),
  ],
)
def test_sizes_that_cannot_work_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(CONFIG, **change)


def test_an_image_beyond_the_position_table_is_refused():
  with pytest.raises(ValueError, match="position_table is 4.* 3 x 5 tokens"):
    mmdit.position_features(3, 5, 16, table=4, base=2)


def test_every_token_has_its_own_place():
  places = mmdit.position_features(4, 6, 16)
  assert places.shape == (24, 16) and places.dtype == np.float32
  assert len(np.unique(places.round(4), axis=0)) == 24
  # Columns in the first half, rows in the second.
  grid = places.reshape(4, 6, 16)
  assert np.ptp(grid[..., :8], axis=0).max() == 0
  assert np.ptp(grid[..., 8:], axis=1).max() == 0


WORDS = np.arange(L)[None] == np.array([[1], [0]])


@pytest.fixture(scope="module")
def sharp(params):
  """The same with attention that has an opinion."""

  def scale(path, leaf):
    normed = any("_norm" in str(getattr(key, "key", "")) for key in path)
    return 10 * leaf if normed else leaf

  return jax.tree_util.tree_map_with_path(scale, params)


def attention(params, words, blocks, config=CONFIG):
  return mmdit.MMDiT(config).apply(
    {"params": params}, X, T, TEXT, POOLED, MASK, words, blocks
  )


@pytest.mark.parametrize("blocks", [(0,), (3,), (4,), (1, 2, 4)])
def test_attention_comes_out_beside_the_same_velocity(sharp, blocks):
  v, seen = jax.jit(attention, static_argnums=2)(sharp, WORDS, blocks)
  np.testing.assert_allclose(
    v, velocity(sharp, X, T, TEXT, POOLED, MASK), atol=1e-5
  )
  assert seen.shape == (B, 2, 3) and np.all(seen >= 0)
  np.testing.assert_allclose(seen.mean((1, 2)), 1.0, rtol=1e-5)
  assert np.asarray(seen).std((1, 2)).min() > 1e-3


def test_attention_of_blocks_is_the_mean_of_theirs(sharp):
  _, both = attention(sharp, WORDS, (1, 4))
  _, one = attention(sharp, WORDS, (1,))
  _, other = attention(sharp, WORDS, (4,))
  np.testing.assert_allclose(both, (one + other) / 2, rtol=1e-5)


def test_attention_is_that_of_the_words_asked_for(sharp):
  _, seen = attention(sharp, WORDS, (2,))
  _, other = attention(sharp, ~WORDS & MASK, (2,))
  assert np.abs(seen - other).max() > 1e-2
  _, nothing = attention(sharp, np.zeros_like(WORDS), (2,))
  np.testing.assert_array_equal(nothing, 1.0)


def test_a_block_that_is_not_there_is_refused(params):
  with pytest.raises(ValueError, match=r"blocks is \(5,\); .* 0 to 4"):
    attention(params, WORDS, (5,))


def word_map(words, change=0.0):
  query, key = normal(5, B, 6, 2, 4), normal(6, B, L, 2, 4)
  key = np.where(words[..., None, None], key, key + change)
  return query, key, attention_room.word_map(query, key, words)


def test_a_word_map_is_the_largest_of_distributions_over_places():
  words = np.array([[True, True, False, False, False], [False] * 4 + [True]])
  query, key, got = word_map(words)
  share = np.exp(np.einsum("bnhd,blhd->bhnl", query, key) / 2)
  share = (share / share.sum(2, keepdims=True)).mean(1)  # [B, N, L]
  want = np.where(words[:, None], share, 0).max(-1)
  np.testing.assert_allclose(
    got, want / want.mean(1, keepdims=True), rtol=1e-5
  )
  # Other words, however loud, take nothing from it.
  *_, among_others = word_map(words, change=100.0)
  np.testing.assert_array_equal(among_others, got)
