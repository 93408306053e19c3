"""The judges on CLIP against transformers, from pixels and words to scores."""

import logging

import numpy as np
import pytest
from ml_collections import config_dict

from spatialrl.parallel.mesh import make_mesh
from spatialrl.rewards import judges
from spatialrl.train import tiny
from tests.parity._folders import near

PROMPTS = ["a dog", "a cat left of a dog", "cups " * 20, "a hat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny.write_clip(tmp_path_factory.mktemp("clip"))


def config(folder, **changes):
  fields = {"folder": str(folder), "dtype": "float32", "batch": 3} | changes
  names = ("clip_score", "pick_score")
  return config_dict.ConfigDict({name: dict(fields) for name in names})


@pytest.fixture(scope="module")
def made(folder):
  return judges.make_judges(config(folder), make_mesh((-1, 1, 1)))


@pytest.mark.parametrize("side", [8, 40])
def test_scores_are_those_of_transformers(side, made, folder, rng):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  images = rng.integers(0, 256, (4, side, side, 3), np.uint8)
  model = transformers.CLIPModel.from_pretrained(folder).eval()
  tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder)
  square = {"height": 8, "width": 8}
  processor = transformers.CLIPImageProcessorPil(
    size={"shortest_edge": 8}, crop_size=square
  )
  pixels = processor(list(images), return_tensors="np")["pixel_values"]

  def cosines(prefix):
    words = tokenizer(
      [prefix + p for p in PROMPTS], padding=True, truncation=True,
      max_length=77, return_tensors="pt",
    )
    with torch.no_grad():
      logits = model(**words, pixel_values=torch.tensor(pixels))
    scale = float(model.logit_scale.detach().exp())
    return np.diag(logits.logits_per_image) / scale, scale

  inputs = images / np.float32(127.5) - 1, PROMPTS
  # 8-bit pixels that PIL has resized are rounded, ours are not.
  bound = 1e-4 if side == 8 else 2e-2
  cosine, scale = cosines("")
  near(np.asarray(made["pick_score"](*inputs).scalar), scale * cosine, bound)
  assert np.ptp(cosine) > 0.1
  cosine, _ = cosines("A photo depicts ")
  score = np.asarray(made["clip_score"](*inputs).scalar)
  near(score, 2.5 * np.maximum(cosine, 0), bound)
  assert made["clip_score"].compilations() <= 2  # a program for each size


def test_what_clip_will_not_read_is_said(folder, caplog):
  with caplog.at_level(logging.WARNING, "absl"):
    judges.check_prompts(config(folder), PROMPTS)
  cut = [r.getMessage() for r in caplog.records]
  assert len(cut) == 2 and "77 tokens cuts 1 prompts" in cut[0]


def test_folders_that_are_no_judge_are_named(folder, tmp_path):
  one = tiny.write_pipeline(tmp_path / "model", "flux") / "text_encoder"
  with pytest.raises(ValueError, match="CLIPTextModel; CLIPModel is needed"):
    judges.check_prompts(config(one), PROMPTS)
  (folder / "merges.txt").rename(folder / "away")
  with pytest.raises(ValueError, match=r"not complete; .* merges\.txt"):
    judges.check_prompts(config(folder), PROMPTS)
  (folder / "away").rename(folder / "merges.txt")
