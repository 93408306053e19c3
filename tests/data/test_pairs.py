"""Preference pairs from a folder: read, checked, resized."""

import json

import numpy as np
import pytest
from PIL import Image

from spatialrl.data import pairs

GOOD = {"prompt": "a cat", "better": "b.png", "worse": "w.jpg"}


@pytest.fixture
def folder(tmp_path):
  shades = {"b.png": 200, "w.jpg": 50, "cut.jpg": 50}
  for name, shade in shades.items():
    Image.new("RGB", (32, 32), (shade,) * 3).save(tmp_path / name)
  whole = (tmp_path / "cut.jpg").read_bytes()
  (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
  (tmp_path / "text.png").write_text("not an image")
  Image.new("RGB", (32, 16)).save(tmp_path / "wide.png")
  return tmp_path


def listed(folder, *records):
  path = folder / "pairs.jsonl"
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return path


def test_a_pair_is_its_better_image_first(folder):
  (pair,) = pairs.read(listed(folder, GOOD), folder)
  assert pair.prompt == "a cat"
  images = pairs.load_images(pair, 8)
  assert images.shape == (2, 8, 8, 3) and images.dtype == np.uint8
  np.testing.assert_allclose(images.mean((1, 2, 3)), [200, 50], atol=3)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"better": "gone.png"}, "gone.png' is missing or broken"),
    ({"worse": "cut.jpg"}, "cut.jpg' is missing or broken"),
    ({"worse": "text.png"}, "text.png' is missing or broken"),
    ({"better": "wide.png"}, "wide.png' is 32 x 16; square"),
    ({"worse": None}, "field 'worse' is None"),
    ({"prompt": ""}, "field 'prompt' is ''"),
  ],
)
def test_the_line_of_a_pair_that_is_none_is_named(folder, change, words):
  path = listed(folder, GOOD, GOOD | change)
  with pytest.raises(ValueError, match=rf"pairs\.jsonl:2: .*{words}"):
    pairs.read(path, folder)


def test_the_list_is_jsonl(tmp_path):
  with pytest.raises(ValueError, match=r"pairs\.csv' must end in \.jsonl"):
    pairs.read(tmp_path / "pairs.csv", tmp_path)
