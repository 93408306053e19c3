"""Tiny random models, and the committed configs shrunk to them."""

import pathlib

import jax
import pytest

from spatialrl.data import tokenizers
from spatialrl.io import assets
from spatialrl.models import build, reward_model
from spatialrl.parallel.mesh import make_mesh
from spatialrl.train.configs import load_config

_CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
  """(policy file, reward file) of random 16 px models."""
  folder = tmp_path_factory.mktemp("weights")
  words = len(tokenizers.load())
  config = load_config(_CONFIGS / "scenes_base.py", "tiny")
  policy = build.make_policy(config.policy, words)
  assets.save(
      folder / "policy.safetensors",
      jax.device_get(policy.init(jax.random.key(0))),
      {"policy": policy.to_json()},
  )
  fields = load_config(_CONFIGS / "scenes_reward.py", "tiny").reward.to_dict()
  model = reward_model.RewardConfig(vocabulary=words, **fields)
  assets.save(
      folder / "reward.safetensors",
      jax.device_get(reward_model.init(model, jax.random.key(0))),
      {"reward": model.to_json()},
  )
  return str(folder / "policy.safetensors"), str(folder / "reward.safetensors")


@pytest.fixture
def online_config(weights):
  """The quickstart at the smallest size, on random weights."""
  config = load_config(_CONFIGS / "quickstart.py", "tiny")
  config.init, config.rewards.spatial_score.weights = weights
  return config


@pytest.fixture(scope="session")
def mesh():
  return make_mesh((-1, 1, 1))
