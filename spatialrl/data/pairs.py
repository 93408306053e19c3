"""Preference pairs from a folder of images: a prompt, the better, the worse.

The list is a JSONL file beside the images or anywhere else, each line
{"prompt": ..., "better": FILE, "worse": FILE}.
"""

import dataclasses
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from spatialrl.data import prompts

_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two images of one prompt.

  Attributes:
    prompt: str.
    better: path of the preferred image.
    worse: path of the other one.
  """

  prompt: str
  better: pathlib.Path
  worse: pathlib.Path


def read(path, folder):
  """Reads a list of pairs and decodes every image of it once.

  Args:
    path: a JSONL file.
    folder: against which its file names count.

  Returns:
    list of Pair.

  Raises:
    ValueError: naming the line of the first pair that is no pair: a field is
      missing, or an image is missing, broken or not square.
  """
  path, folder = pathlib.Path(path), pathlib.Path(folder)
  if path.suffix != ".jsonl":
    raise ValueError(f"pair file {str(path)!r} must end in .jsonl.")
  lines = prompts.read_lines(path)
  for where, record in lines:
    for field in ("prompt", "better", "worse"):
      prompts.check_text(where, record, field)
  found = [
      Pair(r["prompt"], folder / r["better"], folder / r["worse"])
      for _, r in lines
  ]

  def check(line):
    (where, _), pair = line
    for image in (pair.better, pair.worse):
      _check_image(where, image)

  with ThreadPoolExecutor(_THREADS) as pool:
    for _ in pool.map(check, zip(lines, found, strict=True)):
      pass
  return found


def load_images(pair, pixels):
  """Better and worse of a pair as u8[2, pixels, pixels, 3]."""
  out = []
  for path in (pair.better, pair.worse):
    with Image.open(path) as image:
      size = (pixels, pixels)
      image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
      out.append(np.asarray(image))
  return np.stack(out)


def _check_image(where, path):
  try:
    with Image.open(path) as image:
      image.load()  # `verify` does not see a JPEG that is cut short
      width, height = image.size
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(
        f"{where}: image {str(path)!r} is missing or broken ({error})."
    ) from error
  if width != height:
    raise ValueError(
        f"{where}: image {str(path)!r} is {width} x {height}; square images"
        " are needed."
    )
