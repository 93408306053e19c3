"""Prompts and images as Qwen2.5-VL reads them: ids, positions, patches."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

# Of CLIP, on values in [0, 1]; the published preprocessor_config.json has them.
_MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
_STD = np.float32([0.26862954, 0.26130258, 0.27577711])

IMAGE_TOKEN = "<|image_pad|>"
IMAGE = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
# The published chat template for one image and one text.
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{IMAGE}{{prompt}}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QwenInputs:
  """A batch of texts with images.

  Attributes:
    ids: i32[B, L], the image token once per merged square of patches.
    mask: bool[B, L], True where a token is real.
    positions: i32[3, B, L], time, row and column of each token.
    patches: f32[N, P], those of all images, in the order of the text.
    grids: static, (rows, columns) of patches of each image.
  """

  ids: jax.Array
  mask: jax.Array
  positions: jax.Array
  patches: jax.Array
  grids: tuple[tuple[int, int], ...] = dataclasses.field(
      metadata={"static": True}
  )


def load_tokenizer(folder):
  """The tokenizer of a model folder, never from the network.

  Args:
    folder: holds tokenizer.json.

  Returns:
    transformers.PreTrainedTokenizerFast.

  Raises:
    ValueError: if the file is missing, broken, or knows no image token.
  """
  import transformers  # slow to import

  path = pathlib.Path(folder) / "tokenizer.json"
  if not path.is_file():
    raise ValueError(f"tokenizer file {str(path)!r} does not exist.")
  try:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
  except Exception as error:  # what tokenizers raises is of no narrower class
    raise ValueError(
        f"tokenizer file {str(path)!r} cannot be read ({error})."
    ) from error
  if IMAGE_TOKEN not in tokenizer.get_added_vocab():
    raise ValueError(f"tokenizer file {str(path)!r} has no {IMAGE_TOKEN!r}.")
  return tokenizer


def encode(
    tokenizer, prompts, grid, *, max_tokens, merge=2, end=(), template=TEMPLATE
):
  """Prompts about one image each, as ids of one length, padded on the right.

  Args:
    tokenizer: as `load_tokenizer` returns it.
    prompts: list of B str.
    grid: (rows, columns) of patches of every image.
    max_tokens: L; image tokens and `end` count.
    merge: patches a side of the square that makes one image token.
    end: ids put behind every text, such as a reward token.
    template: text with one `IMAGE` and "{prompt}" in it.

  Returns:
    (ids i32[B, L], mask bool[B, L], positions i32[3, B, L]).

  Raises:
    ValueError: for a template without its two places, a prompt that holds a
      special token, or one that is too long.
  """
  if template.count(IMAGE) != 1 or template.count("{prompt}") != 1:
    raise ValueError(
        f"template is {template!r}; it must hold {IMAGE!r} and '{{prompt}}'"
        " once each."
    )
  special = tokenizer.get_added_vocab()
  token = special[IMAGE_TOKEN]
  count = grid[0] * grid[1] // merge**2
  ids = np.zeros((len(prompts), max_tokens), np.int32)
  mask = np.zeros(ids.shape, bool)
  for row, prompt in enumerate(prompts):
    held = sorted(name for name in special if name in prompt)
    if held:
      raise ValueError(
          f"prompt {prompt!r} holds the special token {held[0]!r}; allowed is"
          " plain text."
      )
    text = tokenizer(template.replace("{prompt}", prompt))["input_ids"]
    at = text.index(token)
    text = [*text[:at], *[token] * count, *text[at + 1 :], *end]
    if len(text) > max_tokens:
      raise ValueError(
          f"prompt {prompt!r} makes {len(text)} tokens with its image;"
          f" max_tokens allows {max_tokens}."
      )
    ids[row, : len(text)] = text
    mask[row, : len(text)] = True
  grids = (tuple(grid),) * len(prompts)
  positions = rope_positions(ids, mask, grids, image_token=token, merge=merge)
  return ids, mask, positions


def rope_positions(ids, mask, grids, *, image_token, merge=2):
  """Rotary positions: text counts on, an image spans a plane.

  All tokens of an image share one time; its rows and columns count on from
  there, and the text behind it starts after the longer side.

  Args:
    ids: i[B, L], padded anywhere.
    mask: bool[B, L].
    grids: (rows, columns) of patches of each image, in the order of the text.
    image_token: id of the image tokens.
    merge: patches a side of the square that makes one image token.

  Returns:
    i32[3, B, L], time, row and column; 0 at padding.

  Raises:
    ValueError: if image tokens and grids do not fit.
  """
  grids = list(grids)
  wanted = sum(rows * columns for rows, columns in grids) // merge**2
  found = int(np.sum((ids == image_token) & mask))
  if found != wanted:
    raise ValueError(
        f"ids holds {found} image tokens; the grids {tuple(grids)} make"
        f" {wanted}."
    )
  positions = np.zeros((3, *ids.shape), np.int32)
  for b, real in enumerate(mask):
    parts, start, at = [], 0, 0
    row = ids[b, real]
    while at < len(row):
      if row[at] == image_token:
        high, wide = (n // merge for n in grids.pop(0))
        parts.append(np.indices((1, high, wide)).reshape(3, -1) + start)
        at, start = at + high * wide, start + max(high, wide)
      else:
        parts.append(np.full((3, 1), start))
        at, start = at + 1, start + 1
    positions[:, b, real] = np.concatenate(parts, axis=1)
  return positions


def smart_resize(height, width, *, factor=28, min_pixels, max_pixels):
  """The size an image is given: near its own, in whole image tokens.

  Args:
    height: pixels.
    width: pixels.
    factor: pixels a side of an image token, which must divide both sides.
    min_pixels: least area.
    max_pixels: largest area.

  Returns:
    (height, width), the aspect ratio about kept.

  Raises:
    ValueError: where one side is over 200 times the other.
  """
  if max(height, width) > 200 * min(height, width):
    raise ValueError(
        f"image size is {height} x {width}; sides may differ by a factor of"
        " 200 at most."
    )
  sides = [round(n / factor) * factor for n in (height, width)]
  if math.prod(sides) > max_pixels:
    scale = math.sqrt(height * width / max_pixels)
    sides = [
        max(factor, math.floor(n / scale / factor) * factor)
        for n in (height, width)
    ]
  elif math.prod(sides) < min_pixels:
    scale = math.sqrt(min_pixels / (height * width))
    sides = [math.ceil(n * scale / factor) * factor for n in (height, width)]
  return tuple(sides)


def patches(images, size, *, patch=14, merge=2, frames=2):
  """Pixels as the vision tower takes them; differentiable, made for `jit`.

  Args:
    images: f32[B, S, S', 3] in [-1, 1].
    size: (height, width) to resize to, as `smart_resize` gives it.
    patch: pixels a side of a patch.
    merge: patches a side of the square that makes one image token.
    frames: frames of a patch, all of them the image.

  Returns:
    f32[B n, 3 frames patch^2], the n patches of an image square by square.

  Raises:
    ValueError: if `size` is not a multiple of `patch * merge`.
  """
  batch, (height, width) = images.shape[0], size
  if height % (patch * merge) or width % (patch * merge):
    raise ValueError(
        f"size is {height} x {width}; allowed are multiples of"
        f" {patch * merge}."
    )
  # Pillow's BICUBIC but for its rounding: it cuts overshoot after each pass.
  for shape in ((images.shape[1], width), (height, width)):
    if images.shape[1:3] != shape:
      images = jax.image.resize(images, (batch, *shape, 3), "cubic")
      images = jnp.clip(images, -1.0, 1.0)
  shape = (1, 1, 1, 3)
  x = ((images + 1) / 2 - _MEAN.reshape(shape)) / _STD.reshape(shape)
  side = patch * merge
  x = x.reshape(
      batch, height // side, merge, patch, width // side, merge, patch, 3
  )
  x = x.transpose(0, 1, 4, 2, 5, 7, 3, 6)
  x = jnp.repeat(x[..., None, :, :], frames, axis=-3)
  return x.reshape(-1, 3 * frames * patch**2)
