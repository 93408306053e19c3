"""The text reward: the rule of distances, and the recogniser behind it."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from spatialrl.parallel.mesh import make_mesh
from spatialrl.rewards import ocr
from spatialrl.rewards.judges import check_prompts, make_judges


@pytest.mark.parametrize("a, b, distance", [
  ("", "", 0), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0),
  ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abcdef", "azced", 3),
  ("ab", "ba", 2),
])
def test_edit_distances(a, b, distance):
  assert ocr.edit_distance(a, b) == distance
  assert ocr.edit_distance(b, a) == distance


@pytest.mark.parametrize("text, target, score", [
  ("open", "open", 1.0),
  ("OP EN\n", "o Pen", 1.0),  # neither case nor white space counts
  ("sorry, we are open today", "OPEN", 1.0),  # a part of what was read
  ("opem", "open", 0.75),
  ("openn", "nope", 0.25),
  ("", "open", 0.0),
  ("something else entirely", "open", 0.0),  # never below 0
])
def test_scores_by_the_published_rule(text, target, score):
  assert ocr.score(text, target) == score


def test_the_target_is_the_first_quoted_text():
  assert ocr.target('a sign that says "Open All Day" or "closed"') == (
    "Open All Day"
  )
  assert ocr.target("ein Schild “offen”") == "offen"
  for prompt in ("a sign", 'a "', 'a sign ""', 'a sign "  "', "it's 'open'"):
    with pytest.raises(ValueError, match="quotes no text") as caught:
      ocr.target(prompt)
    assert repr(prompt) in str(caught.value)


def test_the_judge_needs_its_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  config = {"workers": 1, "timeout_seconds": 60, "retries": 0}
  with pytest.raises(ValueError, match=r'pip install -e "\.\[ocr\]"'):
    make_judges(ConfigDict({"ocr": config}), make_mesh((-1, 1, 1)))
  config["workers"] = 0
  with pytest.raises(ValueError, match="rewards.ocr.workers is 0"):
    make_judges(ConfigDict({"ocr": config}), make_mesh((-1, 1, 1)))


def test_prompts_without_text_are_refused_before_anything_is_made():
  config = ConfigDict({"ocr": {"workers": 1}, "oracle": {}})
  quoted = ['a sign that says "open"']
  check_prompts(config, quoted)
  with pytest.raises(ValueError, match="'a sign' quotes no text"):
    check_prompts(config, [*quoted, "a sign"])
  check_prompts(ConfigDict({"oracle": {}}), ["a sign"])


def test_the_recogniser_reads_what_was_written():
  engine = pytest.importorskip("rapidocr_onnxruntime").RapidOCR(
    text_score=0.0, use_cls=False
  )
  written = ["Open", "Coffee Shop", "SALE 50", "", "Open"]
  prompts = [f'a sign that says "{text or "Exit"}"' for text in written]
  prompts[-1] = 'a sign that says "Over"'
  pixels = np.stack([_sign(text) for text in written])
  config = {"workers": 2, "timeout_seconds": 120, "retries": 0}
  judge = make_judges(ConfigDict({"ocr": config}), make_mesh((-1, 1, 1)))["ocr"]
  images = jnp.asarray(pixels / np.float32(127.5) - 1)
  scores = np.asarray(judge(images, prompts).scalar)
  np.testing.assert_array_equal(scores, [1, 1, 1, 0, 0.5])
  judge.close()
  read = ocr.Recogniser()
  for image in pixels:
    lines, _ = engine(image[..., ::-1])
    assert read.read(image) == "".join(line[1] for line in lines or [])


def _sign(text):
  """Dark red letters on white, u8[128, 128, 3]: red and blue must not swap."""
  image = Image.new("RGB", (128, 128), (250, 250, 250))
  font = ImageFont.load_default(size=22)
  ImageDraw.Draw(image).text((6, 48), text, (140, 20, 20), font)
  return np.asarray(image)
