"""The online job end to end at tiny size, and what it refuses."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from spatialrl.io.metrics import read_metrics, without_timings
from spatialrl.models.build import load_policy
from spatialrl.rewards.external import External
from spatialrl.rewards.judges import make_judges
from spatialrl.train import draw, online, worlds
from spatialrl.train import loop as loops
from spatialrl.train.prepare import kept_rows

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  """Environment in which processes share compiled programs."""
  folder = tmp_path_factory.mktemp("programs")
  return os.environ | {
      "JAX_COMPILATION_CACHE_DIR": str(folder),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PLATFORMS": "cpu",
  }


def command(weights, workdir, *overrides):
  policy, reward = weights
  return [
      sys.executable, "-m", "spatialrl.main",
      "--config", "configs/quickstart.py:tiny",
      "--workdir", str(workdir),
      f"--config.init={policy}",
      f"--config.rewards.spatial_score.weights={reward}",
      *overrides,
  ]


def finish(command_, env):
  done = subprocess.run(
      command_, cwd=_ROOT, env=env, capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done


def test_a_run_killed_twice_leaves_the_metrics_of_one_never_killed(
    weights, cache, tmp_path
):
  longer = "--config.steps=6"
  finish(command(weights, tmp_path / "whole", longer), cache)
  wanted = without_timings(read_metrics(tmp_path / "whole"))
  assert [row["step"] for row in wanted] == [1, 2, 3, 4, 5, 6]
  torn = tmp_path / "torn"
  for lines in (1, 3):
    process = subprocess.Popen(
        command(weights, torn, longer), cwd=_ROOT, env=cache,
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )
    path, deadline = torn / "metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
      if path.exists() and path.read_bytes().count(b"\n") >= lines:
        break
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
  finish(command(weights, torn, longer), cache)
  assert without_timings(read_metrics(torn)) == wanted
  first, second = (
      json.loads((tmp_path / name / "summary.json").read_text())
      for name in ("whole", "torn")
  )
  assert first["final"] == second["final"]
  for key in (
      "base", "final", "reward_pair_accuracy", "hacking_gap", "seconds",
      "seed", "config",
  ):
    assert key in first
  assert (tmp_path / "whole" / "report.html").stat().st_size > 1000


def test_sigterm_saves_and_says_to_start_again(weights, cache, tmp_path):
  workdir = tmp_path / "run"
  process = subprocess.Popen(
      command(weights, workdir, "--config.steps=400",
              "--config.checkpoint.every=400", "--config.eval.every=400"),
      cwd=_ROOT, env=cache, stderr=subprocess.PIPE, text=True,
  )
  path, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
  while time.monotonic() < deadline and process.poll() is None:
    if path.exists() and path.read_bytes().count(b"\n") >= 2:
      break
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 75, errors[-2000:]
  rows = read_metrics(workdir)
  assert f"SIGTERM at step {rows[-1]['step']}" in errors


def test_no_program_is_compiled_twice_and_ratios_start_at_one(
    online_config, mesh
):
  config = online_config
  config.rollout.window_range = (0, 6)
  # 16 images in the rollout, 8 in a gradient: without chunks the matrix
  # products of the two sizes round differently.
  config.rollout.group, config.select.k, config.train.updates = 8, 2, 1
  config.rollout.chunk = 8
  policy, params = load_policy(config.init, config.lora)
  loop = loops.Loop(config, mesh, policy, make_judges(config.rewards, mesh))
  base = jax.device_put(params)
  state = loop.init(base)
  prompts = ["a red circle left of a blue square"] * 8
  prompts += ["a green cross above a white circle"] * 8
  starts = set()
  for step in range(4):
    starts.add(int(draw.window_start(config, state.key, step)))
    state, values = loop.iterate(
        base, state, prompts, np.zeros(16, np.int32), step
    )
    assert values["ratio_first_deviation"] == 0.0
    assert values["log_prob_mismatch"] == 0.0
  assert len(starts) > 1
  assert set(loop.compilations().values()) == {1}


def test_topk_at_a_quarter_halves_the_update(online_config):
  assert kept_rows(online_config) == 4  # k = 1 of 4, two prompts
  online_config.select.name = "all"
  assert kept_rows(online_config) == 8


def test_prompts_of_an_iteration_depend_on_seed_and_step(online_config):
  prompts = [str(i) for i in range(50)]
  first, _ = online.choose_prompts(prompts, online_config, 3)
  assert first == online.choose_prompts(prompts, online_config, 3)[0]
  assert first != online.choose_prompts(prompts, online_config, 4)[0]
  assert len(set(first)) == 2 and first[0] == first[3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"select.k": 3}, ("select.k is 3", "1 to 2")),
        ({"select.name": "best"}, ("select.name is 'best'", "topk_bottomk")),
        ({"objective.name": "a2c"}, ("objective.name is 'a2c'", "ppo")),
        ({"rollout.window": 9}, ("rollout.window is 9",)),
        ({"rollout.window_range": (0, 8)}, ("rollout.window_range",)),
        ({"rollout.group": 0}, ("rollout.group is 0",)),
        ({"rollout.chunk": 3}, ("rollout.chunk is 3", "divide")),
        ({"prompts.per_step": 99}, ("prompts.per_step is 99", "16")),
        ({"train.updates": 3}, ("train.updates is 3", "divide")),
        ({"log_prob": "exact"}, ("log_prob is 'exact'", "gaussian")),
        ({"eval.images": 0}, ("eval.images is 0", "at least 1")),
        ({"eval.batch": 0}, ("eval.batch is 0", "at least 1")),
        ({"checkpoint.every": 0}, ("checkpoint.every is 0", "at least 1")),
        ({"train.ema_every": 0}, ("train.ema_every is 0", "at least 1")),
        ({"rollout.chunk": -2}, ("rollout.chunk is -2", "at least 0")),
        ({"train.ema_decay": 1.5}, ("train.ema_decay is 1.5", "below 1")),
        ({"optimizer.max_norm": 0.0}, ("optimizer.max_norm is 0", "above 0")),
    ],
)
def test_a_config_that_cannot_work_is_refused_in_a_sentence(
    online_config, mesh, change, words
):
  for field, value in change.items():
    *parents, leaf = field.split(".")
    node = online_config
    for parent in parents:
      node = node[parent]
    node[leaf] = value
  with pytest.raises(ValueError) as caught:
    online.check(online_config, mesh)
  assert all(word in str(caught.value) for word in words)
  assert str(caught.value).count("\n") == 0


def test_missing_and_truncated_weights_are_named(
    online_config, mesh, tmp_path, weights
):
  online_config.init = str(tmp_path / "none.safetensors")
  with pytest.raises(ValueError, match=r"none\.safetensors' do not exist"):
    online.run(online_config, tmp_path / "run", mesh)
  cut = tmp_path / "cut.safetensors"
  cut.write_bytes(pathlib.Path(weights[0]).read_bytes()[:-100])
  online_config.init = str(cut)
  with pytest.raises(ValueError, match="truncated"):
    online.run(online_config, tmp_path / "run", mesh)
  online_config.init = weights[1]
  with pytest.raises(ValueError, match="not those of a policy"):
    online.run(online_config, tmp_path / "run", mesh)


def test_an_unknown_field_is_one_sentence(weights, cache, tmp_path):
  done = subprocess.run(
      command(weights, tmp_path, "--config.rollout.grop=3"),
      cwd=_ROOT, env=cache, capture_output=True, text=True, timeout=120,
  )
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error:") and "grop" in last
  assert "Traceback" not in done.stderr


def test_a_nan_reward_stops_the_run(online_config, mesh, tmp_path, monkeypatch):
  judge = worlds.make_judges

  def broken(config, mesh):
    judges = judge(config, mesh)
    score = judges["spatial_score"]

    class Broken:
      model, params = score.model, score.params

      def __call__(self, images, prompts):
        signals = score(images, prompts)
        scalar = np.asarray(signals.scalar).copy()
        scalar[0] = np.nan
        return type(signals)(scalar=scalar, sigma=signals.sigma)

      def compilations(self):
        return 1

    return {"spatial_score": Broken()}

  monkeypatch.setattr(worlds, "make_judges", broken)
  with pytest.raises(ValueError, match=r"at step 1.*last good checkpoint"):
    online.run(online_config, tmp_path / "run", mesh)


def test_workers_of_judges_end_with_the_run(
    online_config, mesh, tmp_path, monkeypatch
):
  ended = []
  pool = types.SimpleNamespace(close=lambda: ended.append(True))
  judges = {"mine": External("mine", pool, mesh)}
  judges |= make_judges(online_config.rewards, mesh)
  world = types.SimpleNamespace(judges=judges)
  monkeypatch.setitem(worlds.WORLDS, "scenes", lambda *_: world)

  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(online, "_train", stop)
  with pytest.raises(KeyboardInterrupt):
    online.run(online_config, tmp_path, mesh)
  assert ended == [True]
