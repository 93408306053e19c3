"""The jobs on real backbones, end to end on tiny random weights."""

import csv
import json
import pathlib

import numpy as np
import pytest
from ml_collections import config_dict
from PIL import Image

from spatialrl import encode
from spatialrl.convert import folder, lora
from spatialrl.io import assets
from spatialrl.io.metrics import read_metrics
from spatialrl.records import Signals
from spatialrl.train import eval as eval_job
from spatialrl.train import (
    finish_images,
    online,
    reward,
    sample,
    tiny,
    worlds,
)
from spatialrl.train.configs import load_config

# Nobody reads what the text of the last block would ask for.
_UNREAD = "transformer_blocks.2.attn.add_q_proj"
_CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def config_of(name):
  return load_config(_CONFIGS / f"{name}.py", "tiny")


@pytest.mark.parametrize(
    ("name", "layers", "unused", "aggregate"),
    [
        ("sd35_spatialscore_grpo", 27, {_UNREAD}, "weighted_sum"),
        ("flux_spatialscore_grpo", 18, set(), "hierarchical"),
    ],
)
def test_a_run_ends_with_a_lora_folder(
    name, layers, unused, aggregate, mesh, tmp_path
):
  config = config_of(name)
  config.steps = 1
  config.eval.every = 1
  config.aggregate.name = aggregate
  absolute = aggregate == "weighted_sum"
  summary = online.run(config, tmp_path, mesh)
  (row,) = read_metrics(tmp_path)
  assert np.isfinite([row["reward"], row["held_out_qwen_score"]]).all()
  assert ("held_out_reward" in row) == absolute
  assert row["ratio_first_deviation"] == 0.0 and row["grad_norm"] > 0
  assert set(summary["compilations"].values()) == {1}
  saved = json.loads((tmp_path / "summary.json").read_text())
  for side in ("base", "final"):
    assert saved[side].get("reward", 0) == absolute * saved[side]["qwen_score"]
    assert saved[side]["failed_scores"] == 0
  assert saved["base"] != saved["final"]
  page = (tmp_path / "report.html").read_text()
  assert "before_after.png" in page and "curves.png" in page
  base = folder.open_model(tmp_path / "tiny/model/transformer")
  pairs = lora.read(tmp_path / "lora", base)
  assert len(pairs) == layers
  assert {n for n, pair in pairs.items() if not pair.b.any()} == unused
  assert (tmp_path / "checkpoints/00000001/commit.json").exists()


def test_a_reward_is_trained_on_pairs_and_judges(mesh, tmp_path):
  config = config_of("spatialscore_qwen")
  config.steps = 1
  reward.run(config, tmp_path, mesh)
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert 0 <= summary["final"]["pair_accuracy"] <= 1
  assert summary["pairs"] == {"train": 8, "held_out": 8}
  trained, metadata = assets.load(tmp_path / "spatial_score.safetensors")
  assert set(trained) == {"lora", "token", "head"}
  fields = json.loads(metadata["spatial_score"])
  assert fields["reading"] == {"pixels": 56, "max_tokens": 224}
  assert fields["reward_token"] == 270
  (row,) = read_metrics(tmp_path)
  assert row["grad_norm"] > 0


def test_images_of_a_prompt_file_as_geneval_wants_them(mesh, tmp_path):
  config = config_of("eval_prompts")
  config.prompts.file = "ignored"  # `tiny` has its own
  sample.run(config, tmp_path, mesh)
  images = tmp_path / "images"
  assert [p.name for p in sorted(images.iterdir())] == [
      f"{i:05}" for i in range(8)
  ]
  record = json.loads((images / "00003/metadata.jsonl").read_text())
  assert record == {"prompt": "a cat left of a car"}
  files = sorted(images.glob("*/samples/*"))
  assert len(files) == 16 and files[1].name == "0001.png"
  before = {file: file.read_bytes() for file in files}
  assert len(set(before.values())) == 16
  for file in (files[5], files[14]):
    file.unlink()
  stamps = {f: f.stat().st_mtime_ns for f in files if f.exists()}
  sample.run(config, tmp_path, mesh)
  for file in files:
    with Image.open(file) as now:
      assert now.size == (16, 16)
    assert file.read_bytes() == before[file]
  assert {f: f.stat().st_mtime_ns for f in stamps} == stamps


def test_a_prompt_file_is_scored_by_all_judges(mesh, tmp_path):
  config = config_of("eval_scores")
  summary = eval_job.run(config, tmp_path, mesh)
  with (tmp_path / "scores.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 16 and rows[7]["prompt"] == "a cat left of a car"
  assert set(summary["final"]) == {"clip_score", "pick_score", "failed_scores"}
  for name in ("clip_score", "pick_score"):
    scores = np.array([float(row[name]) for row in rows])
    assert len(set(scores)) > 8  # images and prompts differ
    np.testing.assert_allclose(summary["final"][name], scores.mean(), 1e-5)
  assert "gallery.png" in (tmp_path / "report.html").read_text()
  config.rewards = {}
  with pytest.raises(ValueError, match="rewards is empty"):
    eval_job.run(config, tmp_path / "none", mesh)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"world": "films"}, "world is 'films'; allowed are"),
        ({"rollout.attention_blocks": (0,)}, "attention_blocks is (0,)"),
        ({"rollout.decode_chunk": 3}, "decode_chunk is 3; it must divide"),
        ({"tiny": "pixart"}, "tiny is 'pixart'; allowed are"),
        ({"tiny": "", "prompts.file": "gone.txt"}, "gone.txt' cannot be read"),
    ],
)
def test_what_cannot_work_is_a_sentence(change, words, mesh, tmp_path):
  config = config_of("sd35_spatialscore_grpo")
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError) as caught:
    online.run(config, tmp_path, mesh)
  assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def real(tmp_path):
  """A config on the folders of a tiny pipeline, as a user has it."""
  config = tiny.prepare(config_of("sd35_spatialscore_grpo"), tmp_path)
  config.tiny = ""
  held_out = pathlib.Path(config.prompts.held_out)
  held_out.write_text('{"prompt": "a new cup"}\n' * 4)
  return config


def test_prompts_of_the_evaluation_are_not_trained_on(real, mesh, tmp_path):
  real.prompts.held_out = real.prompts.file
  with pytest.raises(ValueError, match="4 prompts that are also trained on"):
    worlds.images_world(real, tmp_path, mesh)


def test_folders_are_checked_before_anything_is_read(real, mesh, tmp_path):
  judge = pathlib.Path(real.rewards.qwen_score.folder)
  (judge / "tokenizer.json").rename(judge / "away.json")
  with pytest.raises(ValueError, match=r"tokenizer\.json' does not exist"):
    worlds.images_world(real, tmp_path, mesh)
  (judge / "away.json").rename(judge / "tokenizer.json")
  model = pathlib.Path(real.model.folder)
  tokenizer = model / "tokenizer_2/merges.txt"
  tokenizer.unlink()
  with pytest.raises(ValueError, match="tokenizer_2' is not complete"):
    worlds.images_world(real, tmp_path, mesh)
  half = model / "transformer/diffusion_pytorch_model.safetensors"
  half.write_bytes(half.read_bytes()[:5000])
  with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors"):
    worlds.images_world(real, tmp_path, mesh)
  real.model.folder = str(model / "vae")
  with pytest.raises(ValueError, match="vae/transformer is not a folder"):
    worlds.images_world(real, tmp_path, mesh)


def test_prompts_are_encoded_beforehand(real, mesh, tmp_path, capsys):
  cache = tmp_path / "cache"
  command = [real.model.folder, str(cache), real.prompts.file]
  tokens = ["--dtype=float32", "--t5-tokens=32"]
  assert encode.main([*command, *tokens, "--batch=4"]) == 0
  assert encode.main([*command, real.prompts.held_out, *tokens]) == 0
  said = capsys.readouterr()
  assert "cache: 9 prompts encoded" in said.out  # with the empty one
  assert "cache: 1 prompts encoded" in said.out and "9/9" not in said.err
  before = sorted(cache.iterdir())
  real.text.cache = str(cache)
  worlds.images_world(real, tmp_path, mesh)  # finds all of them
  assert sorted(cache.iterdir()) == before
  assert encode.main([f"{real.model.folder}/vae", *command[1:]]) == 1
  assert "vae/transformer is not a folder" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_is_refused(real, mesh, tmp_path):
  held_out = pathlib.Path(real.prompts.held_out)
  real.text.too_long = "refuse"
  line = '{"prompt": "a very very very long prompt of cups"}\n'
  held_out.write_text(line * 4)
  with pytest.raises(ValueError, match="longer than the 32 tokens"):
    worlds.images_world(real, tmp_path, mesh)


def test_failed_scores_are_counted_and_nan_is_none_of_them(mesh, monkeypatch):
  def sampler(*_):
    return lambda *_, **__: np.zeros((4, 2, 2, 3), np.uint8)

  monkeypatch.setattr(finish_images, "Sampler", sampler)
  config = config_dict.ConfigDict(
      {"eval": {"batch": 4, "quick_prompts": 4, "images": 1}}
  )
  some, none = np.array([1, 2, -np.inf, 3]), np.full(4, -np.inf)
  judges = {
      "some": lambda *_: Signals(scalar=some),
      "none": lambda *_: Signals(scalar=none),
  }
  evaluation = finish_images.Evaluation(
      config, mesh, None, None, judges, ["a", "b", "c", "d"]
  )
  found = evaluation.quick({}, {})
  assert found == {"held_out_some": 2.0, "held_out_failed_scores": 4.0}
  with pytest.raises(ValueError, match="none scored none of 4 images"):
    evaluation.full({}, {})
  some[0] = np.nan
  assert np.isnan(evaluation.quick({}, {})["held_out_some"])
