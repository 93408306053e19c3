"""A policy of four matrices whose names the partition rules know."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.records import Conditioning

_SHAPES = {
  "patch_embed": (192, 16), "image_ff/up": (16, 32), "image_ff/down": (32, 16),
  "proj_out": (16, 192),
}


@dataclasses.dataclass(frozen=True)
class Small:
  """Two layers, so that eight devices compile in seconds what they share."""

  family = "scenes"
  latent_shape = (2, 2, 192)
  remat = False

  def init(self):
    rng = np.random.default_rng(0)
    return {
      name: {"kernel": rng.normal(size=shape, scale=0.2).astype(np.float32)}
      for name, shape in _SHAPES.items()
    }

  def init_trainable(self, key, base):
    del key
    return jax.tree.map(jnp.array, base)

  def encode(self, base, ids, mask):
    del base
    text = jnp.cos(ids[..., None] * jnp.arange(1.0, 17.0)[None, None])
    return Conditioning(text=text, pooled=text.mean(1), mask=mask)

  def encode_empty(self, base, cond):
    del base
    return jax.tree.map(jnp.zeros_like, cond)

  def start(self, base):
    return base

  def velocity(self, base, trainable, x, t, cond, *, words=None, blocks=()):
    assert words is None and not blocks
    kernels = base if trainable is None else trainable
    embed, up, down, out = (kernels[name]["kernel"] for name in _SHAPES)
    hidden = x @ embed + cond.pooled[:, None, None] * t[:, None, None, None]
    hidden = hidden + jnp.tanh(hidden @ up) @ down
    return hidden @ out

  def decode(self, base, latents):
    del base
    x = latents.reshape(-1, 2, 2, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    return jnp.clip(x.reshape(-1, 16, 16, 3), -1.0, 1.0)
