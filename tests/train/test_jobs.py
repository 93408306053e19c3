"""Every committed config runs at tiny size, and its job refuses nonsense."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from spatialrl.io import assets
from spatialrl.io.metrics import read_metrics
from spatialrl.models.build import (
  load_autoencoder,
  load_heads,
  load_policy,
  load_reward,
)
from spatialrl.train import (
  autoencoder,
  heads,
  online,
  pretrain,
  reward,
  sample,
)
from spatialrl.train import eval as eval_job
from spatialrl.train.configs import load_config

_CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
_JOBS = {
    "autoencoder": autoencoder,
    "pretrain": pretrain,
    "reward": reward,
    "heads": heads,
    "online": online,
    "eval": eval_job,
    "sample": sample,
}
_RUNS = [
    (path.stem, "tiny")
    for path in sorted(_CONFIGS.glob("*.py"))
    # Tiny, scenes_grpo is the quickstart guided; those on real backbones are
    # run in test_images, rl_rig in tests/reflect.
    if path.stem not in ("scenes_grpo", "rl_rig")
    and load_config(path, "tiny").get("world") != "images"
] + [
    ("scenes_eval", "sample"),
    ("scenes_reward", "captions"),
    ("scenes_reward", "things"),
]


def tiny(name, arg, weights):
  """A committed config on random weights, at the smallest size."""
  config = load_config(_CONFIGS / f"{name}.py", arg)
  if config.job in ("online", "eval", "sample"):
    config.init = weights[0]
  if "rewards" in config and "spatial_score" in config.rewards:
    config.rewards.spatial_score.weights = weights[1]
  if config.job == "heads":
    config.reward = weights[1]
  if arg in ("captions", "things"):
    data = config.data
    config = load_config(_CONFIGS / f"{name}.py", "tiny")
    config.data = data
  if arg == "sample":
    config.sample.count, config.eval.images, config.eval.batch = 2, 2, 4
  if "steps" in config:
    config.steps = 1
  return config


@pytest.mark.parametrize(("name", "arg"), _RUNS)
def test_every_config_runs(name, arg, weights, mesh, tmp_path):
  config = tiny(name, arg, weights)
  _JOBS[config.job].run(config, tmp_path, mesh)
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["config"]["job"] == config.job
  if config.job == "pretrain":
    policy, params = load_policy(str(tmp_path / "policy.safetensors"))
    assert policy.size == 16 and set(params) == {"text", "mmdit"}
  elif config.job == "autoencoder":
    model, _ = load_autoencoder(str(tmp_path / "autoencoder.safetensors"))
    assert model.factor == 8 and model.scaling != 1.0
  elif config.job == "reward":
    model, _ = load_reward(str(tmp_path / "reward.safetensors"))
    assert model.size == 16
    assert "pair_accuracy_2_3" in read_metrics(tmp_path)[-1]
  elif config.job == "heads":
    heads = str(tmp_path / "heads.safetensors")
    assert load_heads(heads, weights[1])[0].size == 16
    row = read_metrics(tmp_path)[-1]
    assert 0 <= row["flaw_auc_relations"] <= 1
  elif config.job == "sample":
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    assert len(lines) == 4
    with Image.open(tmp_path / "0003.png") as picture:
      assert picture.size == (256, 256)
  else:
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 0 <= summary["final"]["object_recall"] <= 1
    assert (tmp_path / "report.html").exists()


def test_a_base_over_latents_takes_its_autoencoder_along(mesh, tmp_path):
  coder = load_config(_CONFIGS / "scenes_autoencoder.py", "tiny")
  coder.steps = 1
  autoencoder.run(coder, tmp_path / "coder", mesh)
  base = load_config(_CONFIGS / "scenes_base.py", "tiny")
  base.steps, base.policy.prediction = 1, "velocity"
  base.policy.autoencoder = str(tmp_path / "coder/autoencoder.safetensors")
  pretrain.run(base, tmp_path / "base", mesh)
  policy, params = load_policy(str(tmp_path / "base/policy.safetensors"))
  assert policy.latent_shape == (2, 2, 16)
  model, frozen = load_autoencoder(base.policy.autoencoder)
  assert policy.autoencoder == model
  jax.tree.map(np.testing.assert_array_equal, params["autoencoder"], frozen)


def test_a_trained_checkpoint_can_be_scored(weights, mesh, tmp_path):
  config = tiny("quickstart", "tiny", weights)
  summary = online.run(config, tmp_path / "run", mesh)
  scored = tiny("scenes_eval", "tiny", weights)
  scored.eval.update(config.eval.to_dict())
  del scored.eval["every"]
  scored.trained = str(tmp_path / "run" / "trained.safetensors")
  again = eval_job.run(scored, tmp_path / "eval", mesh)
  assert again["final"] == summary["final"]


def test_lora_trains_adapters_only(weights, mesh, tmp_path):
  config = tiny("quickstart", "tiny", weights)
  # The random policy's other layers are still behind a projection of zeros.
  config.lora = {"rank": 2, "alpha": 4.0, "targets": ("proj_out",)}
  online.run(config, tmp_path, mesh)
  trained, _ = assets.load(tmp_path / "trained.safetensors")
  assert set(trained) == {"proj_out"}
  leaf = trained["proj_out"]
  assert leaf["a"].shape == (32, 2) and leaf["b"].shape == (2, 192)
  assert np.abs(leaf["b"]).max() > 0


def test_an_unknown_word_in_a_prompt_is_named(weights, mesh, tmp_path):
  config = tiny("scenes_eval", "sample", weights)
  config.sample.prompts = ("a red dog above a blue circle",)
  with pytest.raises(ValueError, match="dog"):
    sample.run(config, tmp_path, mesh)


def test_a_workdir_of_another_run_is_refused(weights, mesh, tmp_path):
  config = tiny("scenes_base", "tiny", weights)
  pretrain.run(config, tmp_path, mesh)
  config.batch = 16
  with pytest.raises(ValueError, match="batch"):
    pretrain.run(config, tmp_path, mesh)


def test_a_workdir_that_is_a_file_is_refused(weights, mesh, tmp_path):
  (tmp_path / "file").write_text("")
  config = tiny("scenes_base", "tiny", weights)
  with pytest.raises(OSError, match="file"):
    pretrain.run(config, tmp_path / "file", mesh)


@pytest.mark.parametrize(
    ("name", "job", "field", "value"),
    [
        ("scenes_base", pretrain, "loss_floor", 0.0),
        ("scenes_reward", reward, "loss", "hinge"),
        ("scenes_reward", reward, "world", "films"),
        ("scenes_eval", sample, "world", "films"),
    ],
)
def test_unknown_choices_are_named(name, job, field, value, mesh, tmp_path):
  config = load_config(_CONFIGS / f"{name}.py", "tiny")
  config[field] = value
  with pytest.raises(ValueError, match=f"{field} is {value!r}"):
    job.run(config, tmp_path, mesh)


def test_the_smallest_long_run_is_the_quickstart_with_guidance(mesh):
  tiny_run, quickstart = (
      load_config(_CONFIGS / f"{name}.py", "tiny")
      for name in ("scenes_grpo", "quickstart")
  )
  quickstart.rollout.guidance = quickstart.eval.guidance = 1.5
  assert tiny_run == quickstart
  for arg in ("", "full", "oracle"):
    online.check(load_config(_CONFIGS / "scenes_grpo.py", arg), mesh)
