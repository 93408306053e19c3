"""Judge `ocr`: is the text that the prompt quotes written in the image?

Flow-GRPO's text reward (arXiv:2505.05470) on the PP-OCRv4 models that the
package rapidocr-onnxruntime brings along; it reads no weights from elsewhere.
"""

import functools
import importlib.util
import re

from spatialrl.rewards import pool
from spatialrl.rewards.external import External, check_fields

_QUOTED = re.compile(r'["“]([^"“”]*)["”]')


class Ocr(External):
  """One process with a recogniser for every worker."""

  def __init__(self, config, mesh):
    """Fields `workers`, `timeout_seconds` (of one image) and `retries`."""
    check_fields(
      "ocr", config, {"workers": 1, "timeout_seconds": 1, "retries": 0}
    )
    if importlib.util.find_spec("rapidocr_onnxruntime") is None:
      raise ValueError(
        "rewards has 'ocr', which needs rapidocr-onnxruntime:"
        ' pip install -e ".[ocr]" has it.'
      )
    workers = [
      pool.Process(Recogniser, timeout_seconds=config.timeout_seconds)
      for _ in range(config.workers)
    ]
    super().__init__(
      "ocr", pool.Pool(workers, batch=1, retries=config.retries), mesh
    )


def check(config, prompts):
  """Raises ValueError if a prompt quotes no text."""
  del config
  for prompt in prompts:
    target(prompt)


class Recogniser:
  """Reads images on one core; a scorer as pool.Process runs it."""

  def __init__(self):
    from rapidocr_onnxruntime import RapidOCR  # an extra

    # As Flow-GRPO reads: upright text, and every line whatever its confidence.
    self._engine = RapidOCR(
      text_score=0.0, use_cls=False,
      intra_op_num_threads=1, inter_op_num_threads=1,
    )

  def __call__(self, images, prompts):
    """Scores u8[n, S, S, 3] under n prompts; list of n float in [0, 1]."""
    return [
      score(self.read(image), target(prompt))
      for image, prompt in zip(images, prompts, strict=True)
    ]

  def read(self, image):
    """The text of u8[S, S, 3], its lines joined from the top."""
    lines, _ = self._engine(image[..., ::-1])  # it takes BGR, as OpenCV reads
    return "".join(text for _, text, _ in lines or ())


def target(prompt):
  """The first text in double quotes.

  Raises:
    ValueError: there is none.
  """
  quoted = _QUOTED.search(prompt)
  if quoted is None or not _plain(quoted[1]):
    raise ValueError(
      f"the prompt {prompt!r} quotes no text; rewards.ocr needs the text to"
      ' draw in double quotes, as in: a sign that says "open".'
    )
  return quoted[1]


def score(text, target):
  r"""How much of the target was written.

  $1 - \min(d, |y|) / |y|$, d the edit distance of the text and the target y,
  and 0 where the text contains y; case and white space do not count
  (Flow-GRPO, arXiv:2505.05470).

  Args:
    text: what was read.
    target: what should be there; not only white space.

  Returns:
    float in [0, 1].
  """
  text, target = _plain(text), _plain(target)
  distance = 0 if target in text else edit_distance(text, target)
  return 1.0 - min(distance, len(target)) / len(target)


def edit_distance(a, b):
  """Insertions, deletions and replacements that turn `a` into `b`."""

  def row(above, letter):
    cells = [above[0] + 1]
    for j, other in enumerate(b):
      cells.append(
        min(above[j + 1] + 1, cells[j] + 1, above[j] + (letter != other))
      )
    return cells

  return functools.reduce(row, a, list(range(len(b) + 1)))[-1]


def _plain(text):
  return "".join(text.split()).lower()
