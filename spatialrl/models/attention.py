"""Scaled dot-product attention over heads; one function for all networks."""

import jax
import jax.numpy as jnp


def attend(query, key, value, mask=None, *, bias=None, scale=None):
  """Softmax attention, softmax in float32.

  Args:
    query: [B, N, H, d].
    key: [B, M, H', d]; each of its heads serves H / H' heads of the query.
    value: [B, M, H', d].
    mask: bool[B, M], or bool[B, N, M] where queries see different keys; True
      where a key may be seen. None for all.
    bias: f32[H, N, M], added to the logits; None for none.
    scale: factor of the logits; None for 1 / sqrt(d).

  Returns:
    [B, N, H, d] in the dtype of `value`.
  """
  groups = query.shape[2] // key.shape[2]
  if groups > 1:
    key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
  logits = jnp.einsum("bnhd,bmhd->bhnm", query, key).astype(jnp.float32)
  logits = logits * (query.shape[-1] ** -0.5 if scale is None else scale)
  if bias is not None:
    logits = logits + bias[None]
  if mask is not None:
    # Finite, so that a row without any visible key stays finite as well.
    mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    logits = jnp.where(mask, logits, -1e9)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("bhnm,bmhd->bnhd", weights, value)


def word_map(query, key, mask, words):
  """How much every image position looks at some of the words.

  The softmax runs over the text alone, which costs a column a word and not a
  column a position, and leaves fused attention where it is. Each word's map is
  scaled to sum 1 before they are averaged, so that a word that draws much
  attention everywhere does not drown the others (our choice; STAR,
  arXiv:2606.17979, does not print its own).

  Args:
    query: [B, N, H, d] of the image positions.
    key: [B, L, H, d] of the text tokens.
    mask: bool[B, L], real tokens; None for all.
    words: bool[B, L], the words to look for.

  Returns:
    f32[B, N] of mean 1; all 1 where no word was asked for.
  """
  logits = jnp.einsum("bnhd,blhd->bhnl", query, key).astype(jnp.float32)
  logits = logits * query.shape[-1] ** -0.5
  if mask is not None:
    logits = jnp.where(mask[:, None, None, :], logits, -1e9)
  weights = jax.nn.softmax(logits, axis=-1).mean(1)
  weights = weights / jnp.maximum(weights.mean(1, keepdims=True), 1e-12)
  largest = jnp.max(jnp.where(words[:, None, :], weights, 0.0), axis=-1)
  scale = jnp.mean(largest, 1, keepdims=True)
  return jnp.where(scale > 0, largest / jnp.maximum(scale, 1e-12), 1.0)
