"""Scaled dot-product attention over heads; one function for all networks."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

KEPT = "attended"  # name of outputs for `jax.checkpoint`, see `_tiled`
_BEST = {"cpu": "tiled", "gpu": "fused", "tpu": "splash"}
_LANES = 128  # lengths of splash attention's blocks are multiples of it


def attend(
    query, key, value, mask=None, *, bias=None, scale=None, implementation="xla"
):
  """Softmax attention, softmax in float32.

  The implementations differ in rounding only, and in what a query gets that
  may see no key at all, which is finite with each of them.

  Args:
    query: [B, N, H, d].
    key: [B, M, H', d]; each of its heads serves H / H' heads of the query.
    value: [B, M, H', d].
    mask: bool[B, M], or bool[B, N, M] where queries see different keys; True
      where a key may be seen. None for all.
    bias: f32[H, N, M], added to the logits; None for none.
    scale: factor of the logits; None for 1 / sqrt(d).
    implementation: a key of IMPLEMENTATIONS, or "auto" for the one that suits
      the platform. "xla" stores the logits. "fused" is the attention of
      `jax.nn`: cuDNN's on a GPU, which wants 16 bits, XLA's elsewhere. "splash"
      is a TPU kernel, interpreted on a CPU; it takes no bias, and masks of
      keys only. Under a mesh it runs on each device's images and heads, so the
      mesh's axes must divide them.

  Returns:
    [B, N, H, d] in the dtype of `value`.

  Raises:
    ValueError: for an unknown implementation, or one that cannot do this.
  """
  check_implementation(implementation)
  if implementation == "auto":
    implementation = _best()
  if scale is None:
    scale = query.shape[-1] ** -0.5
  run = IMPLEMENTATIONS[implementation]
  return run(query, key, value, mask, bias, scale)


def check_implementation(name):
  """Raises ValueError unless `attend` knows the implementation."""
  if name not in ALLOWED:
    raise ValueError(f"attention is {name!r}; allowed are {ALLOWED}.")


def _best():
  """Name of the implementation for the devices in use."""
  best = _BEST[_platform()]
  devices = jax.sharding.get_abstract_mesh().size
  return "xla" if best == "tiled" and devices > 1 else best


def _platform():
  """Where the program will run: the mesh's devices, if one is set."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def _over_heads(mask):
  """A mask of `attend` as bool[B, 1, N or 1, M]."""
  return mask[:, None, None] if mask.ndim == 2 else mask[:, None]


def _xla(query, key, value, mask, bias, scale):
  groups = query.shape[2] // key.shape[2]
  if groups > 1:
    key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
  logits = jnp.einsum("bnhd,bmhd->bhnm", query, key).astype(jnp.float32)
  logits = logits * scale
  if bias is not None:
    logits = logits + bias[None]
  if mask is not None:
    # Finite, so that a row without any visible key stays finite as well.
    logits = jnp.where(_over_heads(mask), logits, -1e9)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("bhnm,bmhd->bnhd", weights, value)


def _tiled(query, key, value, mask, bias, scale):
  """Image by image, heads before tokens as XLA wants them on a CPU."""
  groups = query.shape[2] // key.shape[2]
  key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
  heads = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
  mask = None if mask is None else _over_heads(mask)
  out = jax.lax.map(
      lambda parts: _tile(scale, *parts, bias), (*heads, mask)
  )
  # A gradient that recomputes elementwise work shall not run the loop again.
  return checkpoint_name(out.transpose(0, 2, 1, 3), KEPT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tile(scale, query, key, value, mask, bias):
  """Attention of one image: [H, N, d], [H, M, d], [H, M, d] -> [H, N, d]."""
  logits = jnp.einsum("hnd,hmd->hnm", query, key).astype(jnp.float32) * scale
  if bias is not None:
    logits = logits + bias
  if mask is not None:
    logits = jnp.where(mask, logits, -1e9)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("hnm,hmd->hnd", weights, value)


# What the backward pass needs of the logits is computed anew, not kept.
_tile.defvjp(
    lambda scale, *parts: (_tile(scale, *parts), parts),
    lambda scale, parts, g: jax.vjp(
        functools.partial(_tile.fun, scale), *parts
    )[1](g),
)


def _fused(query, key, value, mask, bias, scale):
  return jax.nn.dot_product_attention(
      query,
      key,
      value,
      bias=None if bias is None else bias[None],
      mask=None if mask is None else _over_heads(mask),
      scale=scale,
      implementation="cudnn" if _platform() == "gpu" else "xla",
  )


def _splash(query, key, value, mask, bias, scale):
  if bias is not None or (mask is not None and mask.ndim != 2):
    what = "no bias" if bias is not None else f"no mask of shape {mask.shape}"
    raise ValueError(
        f"attention is splash, which takes {what}; allowed are xla and fused."
    )
  run = functools.partial(
      _splash_on_device, scale=scale, interpret=_platform() == "cpu"
  )
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1:
    # The compiler does not know how to split a kernel over devices.
    rows = PartitionSpec(("data", "fsdp"))
    heads = PartitionSpec(("data", "fsdp"), None, "tensor")
    run = jax.shard_map(
        run,
        in_specs=(heads, heads, heads, rows),
        out_specs=heads,
        check_vma=False,
    )
  return run(query, key, value, mask)


def _splash_on_device(query, key, value, mask, *, scale, interpret):
  """Pads both lengths to whole blocks and hides what was added."""
  length, keys = query.shape[1], key.shape[1]
  # All keys at once at 512 px and half of them at 1024 px, where a tile of
  # logits in float32 takes 2 MB of the chip's fast memory.
  block_q, padded_length = _blocks(length, 256)
  block_kv, padded_keys = _blocks(keys, 2304)
  query = (query.astype(jnp.float32) * scale).astype(query.dtype)
  query = _head_major(query, padded_length)
  key, value = (_head_major(x, padded_keys) for x in (key, value))
  segments = None
  if mask is not None or padded_keys > keys:
    if mask is None:
      mask = jnp.ones((key.shape[0], keys), bool)
    seen = jnp.pad(mask, ((0, 0), (0, padded_keys - keys)))
    segments = splash_attention.SegmentIds(
        q=jnp.ones((key.shape[0], padded_length), jnp.int32),
        kv=seen.astype(jnp.int32),
    )
  every = splash_attention.FullMask((padded_length, padded_keys))
  kernel = splash_attention.make_splash_mha(
      splash_attention.MultiHeadMask([every] * query.shape[1]),
      block_sizes=splash_attention.BlockSizes(
          block_q=block_q,
          block_kv=block_kv,
          block_q_dkv=block_q,
          block_kv_dkv=block_kv,
          block_q_dq=block_q,
          block_kv_dq=block_kv,
      ),
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
  )
  out = jax.vmap(kernel)(query, key, value, segments)
  return out[:, :, :length].transpose(0, 2, 1, 3)


def _blocks(length, most):
  """(block, padded length): the fewest equal blocks of at most `most`."""
  count = -(-length // most)
  block = -(-length // (count * _LANES)) * _LANES
  return block, count * block


def _head_major(x, length):
  """[B, N, H, d] -> [B, H, length, d], zeros behind the N."""
  x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
  return x.transpose(0, 2, 1, 3)


def word_map(query, key, words):
  """How much every image position looks at some of the words.

  For each head and word a softmax over the positions, so that a word's map is
  a distribution over places: how much the word draws in all does not matter,
  and what other words draw from the same places does not flatten it, as it
  does where words share a position's softmax. Mean of the heads, largest of
  the words. It costs a column of logits a token of the text, not a column a
  position, and leaves fused attention where it is. All of this is ours: STAR
  (arXiv:2606.17979) does not print its own.

  Args:
    query: [B, N, H, d] of the image positions.
    key: [B, L, H, d] of the text tokens.
    words: bool[B, L], the words to look for.

  Returns:
    f32[B, N] of mean 1; all 1 where no word was asked for.
  """
  logits = jnp.einsum("bnhd,blhd->bhnl", query, key).astype(jnp.float32)
  places = jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=2).mean(1)
  largest = jnp.max(jnp.where(words[:, None, :], places, 0.0), axis=-1)
  mean = jnp.mean(largest, 1, keepdims=True)
  return jnp.where(mean > 0, largest / jnp.maximum(mean, 1e-12), 1.0)


IMPLEMENTATIONS = {
    "xla": _xla, "tiled": _tiled, "fused": _fused, "splash": _splash
}
ALLOWED = (*IMPLEMENTATIONS, "auto")
