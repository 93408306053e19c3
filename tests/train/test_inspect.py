"""Looking into a run: each saved step draws with its own weights."""

import dataclasses
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from spatialrl.data import tokenizers
from spatialrl.io import assets
from spatialrl.io.checkpoint import Checkpointer, CheckpointError
from spatialrl.models.build import make_policy
from spatialrl.train import inspect

_CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
_TINY = runpy.run_path(_CONFIGS / "scenes_base.py")["get_config"]("tiny")
_PROMPTS = ["a red circle left of a blue square"] * 3


@pytest.fixture(scope="module")
def policy():
  """(Policy, its weights, those weights changed)."""
  made = make_policy(_TINY.policy, len(tokenizers.load()))
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes
  )
  other = jax.tree.map(lambda leaf: leaf + np.float32(0.1), params)
  return made, params, other


def _workdir(path, config, saved):
  path.mkdir()
  config = {"eval": _TINY.eval.to_dict(), **config}
  stamp = {"config": config, "versions": {}, "revision": None}
  (path / "config.json").write_text(json.dumps(stamp))
  with Checkpointer(path / "checkpoints", keep_last=3) as checkpoints:
    for step, state in saved.items():
      checkpoints.save(step, state, {})
  return path


def test_an_online_run_draws_with_base_and_trained_weights(tmp_path, policy):
  made, params, other = policy
  init = tmp_path / "policy.safetensors"
  assets.save(init, params, {"policy": made.to_json()}, dtype=np.float32)
  same, moved = params["mmdit"], other["mmdit"]
  config = {
    "job": "online",
    "init": str(init),
    "lora": {"rank": 0, "alpha": 1.0, "targets": [".*"]},
    "prompts": {"relations": [1]},
  }
  saved = {
    10: {"params": moved, "ema": same},
    20: {"params": same, "ema": moved},
  }
  run = inspect.open_run(_workdir(tmp_path / "run", config, saved))
  assert list(run.weights) == ["base", "step 10", "step 20"]
  images = inspect.draw(run, _PROMPTS)
  assert {
    title: drawn.shape for title, drawn in images.items()
  } == dict.fromkeys(run.weights, (3, 16, 16, 3))
  np.testing.assert_array_equal(images["step 10"], images["base"])
  assert (images["step 20"] != images["base"]).mean() > 0.1
  # Other noise for each image, the same whatever else is drawn.
  assert (images["base"][0] != images["base"][1]).any()
  only = dataclasses.replace(run, weights={"base": run.weights["base"]})
  fewer = inspect.draw(only, _PROMPTS[:1])
  np.testing.assert_allclose(
    fewer["base"][0].astype(float), images["base"][0], atol=1
  )
  again = inspect.open_run(tmp_path / "run", field="params")
  jax.tree.map(
    np.testing.assert_array_equal, again.weights["step 10"][1], moved
  )


def test_a_pretraining_run_draws_with_the_weights_of_each_step(
  tmp_path, policy
):
  _, params, other = policy
  config = _TINY.to_dict()
  saved = {2: {"ema": params}, 4: {"ema": other}}
  workdir = _workdir(tmp_path / "run", config, saved)
  (workdir / "checkpoints" / "00000006").mkdir()  # Being written.
  run = inspect.open_run(workdir)
  assert list(run.weights) == ["step 2", "step 4"]
  assert [trained for _, trained in run.weights.values()] == [None, None]
  jax.tree.map(np.testing.assert_array_equal, run.weights["step 4"][0], other)
  prompts = inspect.held_out_prompts(run.config, 5, seed=1)
  assert len(set(prompts)) == 5
  assert prompts[:2] == inspect.held_out_prompts(run.config, 2, seed=1)


def test_a_pretraining_run_has_the_shapes_that_it_went_on_from(
  tmp_path, policy
):
  made, params, _ = policy
  init = tmp_path / "policy.safetensors"
  assets.save(init, params, {"policy": made.to_json()}, dtype=np.float32)
  config = _TINY.to_dict() | {"init": str(init)}
  config["policy"] = config["policy"] | {"width": 2 * made.mmdit.width}
  workdir = _workdir(tmp_path / "run", config, {2: {"ema": params}})
  assert inspect.open_run(workdir).policy.mmdit.width == made.mmdit.width


def test_what_is_no_such_run_is_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  absent = rf"{tmp_path}/nowhere/config\.json does not exist"
  with pytest.raises(ValueError, match=absent):
    inspect.open_run("nowhere")
  reward = _workdir(tmp_path / "reward", {"job": "reward"}, {})
  with pytest.raises(ValueError, match="has job 'reward'; allowed are"):
    inspect.open_run(reward)
  young = _workdir(pathlib.Path("young"), {"job": "online"}, {})
  with pytest.raises(CheckpointError, match="no whole checkpoint in young"):
    inspect.open_run(young)
