"""Scaled dot-product attention over heads; one function for all networks."""

import jax
import jax.numpy as jnp


def attend(query, key, value, mask=None):
  """Softmax attention, softmax in float32.

  Args:
    query: [B, N, H, d].
    key: [B, M, H, d].
    value: [B, M, H, d].
    mask: bool[B, M], True where a key may be seen; None for all.

  Returns:
    [B, N, H, d] in the dtype of `value`.
  """
  logits = jnp.einsum("bnhd,bmhd->bhnm", query, key).astype(jnp.float32)
  logits = logits * query.shape[-1] ** -0.5
  if mask is not None:
    # Finite, so that a row without any visible key stays finite as well.
    logits = jnp.where(mask[:, None, None, :], logits, -1e9)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("bhnm,bmhd->bnhd", weights, value)
