"""Padding is invisible to the text encoder, word order is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.models.text_encoder import TextEncoder, TextEncoderConfig

CONFIG = TextEncoderConfig(
  vocabulary=12, max_tokens=8, width=16, depth=2, heads=2
)
IDS = np.int32([[3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 2, 0]])
MASK = IDS > 0


@pytest.fixture(scope="module")
def params():
  return TextEncoder(CONFIG).init(jax.random.key(0), IDS, MASK)["params"]


@jax.jit
def encode(params, ids, mask):
  return TextEncoder(CONFIG).apply({"params": params}, ids, mask)


def test_ids_behind_the_mask_change_no_bit(params):
  text, pooled = encode(params, IDS, MASK)
  others = encode(params, np.where(MASK, IDS, 11), MASK)
  np.testing.assert_array_equal(text, others[0])
  np.testing.assert_array_equal(pooled, others[1])
  np.testing.assert_array_equal(text[~MASK], 0.0)
  assert np.abs(text[MASK]).min(-1).max() > 0


def test_padding_is_the_same_as_fewer_tokens(params):
  text, pooled = encode(params, IDS, MASK)
  short, short_pooled = encode(params, IDS[:, :5], MASK[:, :5])
  np.testing.assert_allclose(text[:, :5], short, atol=1e-5)
  np.testing.assert_allclose(pooled, short_pooled, atol=1e-5)


def test_the_pooled_vector_alone_knows_the_order_of_words(params):
  # Without blocks and places only the pooling itself can tell.
  config = TextEncoderConfig(
    vocabulary=12, max_tokens=8, width=16, depth=0, heads=2
  )
  bare = {name: params[name] for name in ("words", "places", "norm", "pool")}
  bare["places"] = jnp.zeros_like(bare["places"])
  ids = np.int32([[3, 4, 5], [5, 4, 3]])
  _, pooled = TextEncoder(config).apply(
    {"params": bare}, ids, np.ones_like(ids, bool)
  )
  assert np.abs(pooled[0] - pooled[1]).max() > 0.1 * np.abs(pooled).max()


def test_the_order_of_words_changes_their_states(params):
  ids = np.int32([[3, 4, 5], [5, 4, 3]])
  text, pooled = encode(params, ids, np.ones_like(ids, bool))
  assert np.abs(text[0, ::-1] - text[1]).max() > 0.1
  assert np.abs(pooled[0] - pooled[1]).max() > 0.1


def test_no_token_at_all_is_a_finite_nothing(params):
  text, pooled = encode(params, IDS, np.zeros_like(MASK))
  np.testing.assert_array_equal(text, 0.0)
  np.testing.assert_array_equal(pooled, 0.0)
