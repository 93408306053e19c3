"""The vision tower of Qwen2.5-VL: image patches to a quarter as many tokens.

Bai et al., arXiv:2502.13923, as `Qwen2_5_VisionTransformerPretrainedModel` of
transformers has it, for still images.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.models.attention import attend
from spatialrl.parallel.mesh import keep_rows

_EPSILON = 1e-6  # of all norms; not part of the published config
_THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Sizes of a vision tower.

  Attributes:
    width: D, channels of the patches' states.
    hidden: channels inside the gated MLP.
    depth: number of blocks.
    heads: attention heads; must divide `width` into multiples of 4.
    out: channels of the image tokens, the width of the language model.
    full_blocks: indices of the blocks that attend over the whole image; the
      others attend within windows.
    window: pixels a side of a window, a multiple of `patch` * `merge`.
    patch: pixels a side of a patch.
    merge: patches a side of the square that makes one image token.
    frames: frames of a patch; a still image is repeated so often.
  """

  width: int = 1280
  hidden: int = 3420
  depth: int = 32
  heads: int = 16
  out: int = 3584
  full_blocks: tuple[int, ...] = (7, 15, 23, 31)
  window: int = 112
  patch: int = 14
  merge: int = 2
  frames: int = 2

  def __post_init__(self):
    object.__setattr__(self, "full_blocks", tuple(self.full_blocks))
    if self.width % (4 * self.heads):
      raise ValueError(
          f"vision.heads is {self.heads}; four times it must divide"
          f" vision.width {self.width}."
      )
    if not set(self.full_blocks) <= set(range(self.depth)):
      raise ValueError(
          f"vision.full_blocks is {self.full_blocks}; allowed are indices from"
          f" 0 to {self.depth - 1}."
      )
    if self.window % (self.patch * self.merge):
      raise ValueError(
          f"vision.window is {self.window}; allowed are multiples of"
          f" {self.patch * self.merge}."
      )

  @property
  def patch_values(self):
    """Numbers of one flattened patch: channels, frames, rows, columns."""
    return 3 * self.frames * self.patch**2


class VisionTower(nn.Module):
  """Image tokens of equal-sized images.

  Call with patches f32[B, N, P] in the order of `qwen_inputs.patches` and the
  static grid (rows, columns) of patches, N = rows * columns, both multiples of
  `merge`; returns [B, N / merge^2, out] in reading order, in `dtype`.

  Windows that the image does not fill are filled up with places that nobody
  attends to, so that every window has the same shape.
  """

  config: VisionConfig
  dtype: str = "float32"
  remat: bool = True

  @nn.compact
  def __call__(self, patches, grid):
    c = self.config
    batch, square = patches.shape[0], c.merge**2
    if any(n % c.merge for n in grid):
      raise ValueError(
          f"grid is {grid}; allowed are multiples of merge {c.merge}."
      )
    order, real, inverse, window = _windows(c, grid)
    x = nn.Dense(c.width, False, self.dtype, name="patch_embed")(patches)
    x = x.reshape(batch, -1, square, c.width)[:, order]
    x = x.reshape(batch, -1, c.width)
    cos, sin = _rotary(c, grid, order)
    seen = None if real.all() else np.repeat(real, square)

    block = _VisionBlock
    if self.remat:
      block = nn.remat(block, prevent_cse=False)
    blocks = nn.scan(
        block,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=c.depth,
    )(c, window * square, self.dtype, name="blocks")
    whole = np.isin(np.arange(c.depth), c.full_blocks)
    x, _ = blocks(x, whole, cos, sin, seen)

    x = nn.RMSNorm(_EPSILON, self.dtype, name="merge_norm")(x)
    x = x.reshape(batch, -1, square * c.width)
    x = nn.Dense(square * c.width, dtype=self.dtype, name="merge_up")(x)
    x = nn.gelu(x, approximate=False)
    x = nn.Dense(c.out, dtype=self.dtype, name="merge_down")(x)
    return x[:, inverse]


class _VisionBlock(nn.Module):
  """One block; `window` is the number of patches in a window."""

  config: VisionConfig
  window: int
  dtype: str

  @nn.compact
  def __call__(self, x, whole, cos, sin, seen):
    c = self.config
    batch, tokens, width = x.shape

    normed = nn.RMSNorm(_EPSILON, self.dtype, name="norm1")(x)
    qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(normed)
    qkv = keep_rows(qkv).reshape(batch, tokens, 3, c.heads, -1)
    q, k, v = (qkv[:, :, i] for i in range(3))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)

    def attend_within(length, q, k, v):
      parts = batch * tokens // length
      q, k, v = (x.reshape(parts, length, c.heads, -1) for x in (q, k, v))
      mask = None
      if seen is not None:
        mask = jnp.tile(seen.reshape(-1, length), (batch, 1))
      return attend(q, k, v, mask).reshape(x.shape)

    attended = jax.lax.cond(
        whole,
        lambda *qkv: attend_within(tokens, *qkv),
        lambda *qkv: attend_within(self.window, *qkv),
        q, k, v,
    )
    x = x + nn.Dense(width, dtype=self.dtype, name="out")(attended)
    x = keep_rows(x)
    normed = nn.RMSNorm(_EPSILON, self.dtype, name="norm2")(x)
    gate = nn.Dense(c.hidden, dtype=self.dtype, name="gate")(normed)
    up = nn.Dense(c.hidden, dtype=self.dtype, name="up")(normed)
    hidden = nn.silu(keep_rows(gate)) * keep_rows(up)
    down = nn.Dense(width, dtype=self.dtype, name="down")(hidden)
    return keep_rows(x + down), None


def rotate(x, cos, sin):
  """Rotary positions, channel i turned together with channel i + d / 2.

  Args:
    x: [B, N, H, d].
    cos: f32[1 or B, N, 1, d / 2].
    sin: the same.

  Returns:
    [B, N, H, d] in the dtype of `x`.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _windows(config, grid):
  """Squares of patches, window by window: (order, real, inverse, window).

  `order` i[M] is the square of each place, row-major numbers, 0 at places
  where `real` bool[M] is False; `inverse` is the place of each square, and
  `window` how many places a window has.
  """
  rows, columns = (n // config.merge for n in grid)
  side = config.window // (config.merge * config.patch)
  high, wide = min(side, rows), min(side, columns)
  down, across = -(-rows // high), -(-columns // wide)
  order = np.full((down * high, across * wide), -1)
  order[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
  order = order.reshape(down, high, across, wide).transpose(0, 2, 1, 3).ravel()
  real = order >= 0
  inverse = np.flatnonzero(real)[np.argsort(order[real])]
  return np.maximum(order, 0), real, inverse, high * wide


def _rotary(config, grid, order):
  """cos, sin f32[1, N, 1, d / 2]: half of the angles are rows, half columns."""
  columns = grid[1] // config.merge
  inside = np.indices((config.merge, config.merge)).reshape(2, 1, -1)
  outside = np.stack([order // columns, order % columns])[..., None]
  position = (config.merge * outside + inside).reshape(2, -1, 1)
  half = config.width // config.heads // 2
  frequency = _THETA ** -(np.arange(0, half, 2) / half)
  angle = np.concatenate(list(position * frequency), axis=-1)[None, :, None]
  return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
