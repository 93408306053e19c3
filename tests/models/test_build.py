"""Models from weights files: the right one, whole, or a sentence."""

import json

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from spatialrl.io import assets
from spatialrl.models import build, reward_model
from spatialrl.models.autoencoder import AutoencoderConfig

FIELDS = {
  "size": 16,
  "fold": 8,
  "prediction": "image",
  "width": 16,
  "depth": 3,
  "heads": 2,
  "dual_layers": 1,
  "learned_positions": True,
  "qk_norm": True,
  "remat": False,
  "max_tokens": 8,
  "text_depth": 1,
}
LORA = {"rank": 2, "alpha": 4.0, "targets": ["blocks/.*"]}
REWARD = reward_model.RewardConfig(
  vocabulary=12, size=16, max_tokens=8, width=16, depth=1, heads=2
)


def random_tree(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)


def policy(**change):
  fields = config_dict.ConfigDict(FIELDS | change)
  return build.make_policy(fields, vocabulary=12)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """(policy file, its weights, reward file, its weights)."""
  folder = tmp_path_factory.mktemp("weights")
  made = policy()
  weights = random_tree(jax.eval_shape(made.init, jax.random.key(0)))
  path = str(folder / "policy.safetensors")
  assets.save(path, weights, {"policy": made.to_json()}, dtype=np.float32)
  judge = random_tree(
    jax.eval_shape(lambda k: reward_model.init(REWARD, k), jax.random.key(0))
  )
  reward = str(folder / "reward.safetensors")
  assets.save(reward, judge, {"reward": REWARD.to_json()}, dtype=np.float32)
  return path, weights, reward, judge


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_config_fields_reach_the_networks():
  made = policy(heads=4, depth=5, dual_layers=2)
  assert made.latent_shape == (2, 2, 192)
  assert (made.mmdit.heads, made.text.heads) == (4, 4)
  assert (made.mmdit.depth, made.mmdit.dual_layers) == (5, 2)
  assert made.text.depth == 1 and made.text.max_tokens == 8


def test_a_policy_comes_back_from_its_file(files):
  loaded, params = build.load_policy(files[0])
  assert loaded == policy() and loaded.lora is None
  equal(params, files[1])


def test_a_policy_with_an_autoencoder_comes_back_from_its_file(tmp_path):
  coder = AutoencoderConfig((4, 8), 6, 1, 2, scaling=1.5, shift=0.25)
  made = build.make_policy(config_dict.ConfigDict(FIELDS), 12, coder)
  assert made.latent_shape == (8, 8, 6) and made.fold == 2
  weights = random_tree(jax.eval_shape(made.init, jax.random.key(0)))
  path = str(tmp_path / "policy.safetensors")
  assets.save(path, weights, {"policy": made.to_json()}, dtype=np.float32)
  loaded, params = build.load_policy(path)
  assert loaded == made and loaded.autoencoder == coder
  equal(params, weights)
  hash(loaded)


def test_layers_are_recomputed_as_the_run_says_not_as_the_weights_say(files):
  assert build.load_policy(files[0], remat=True)[0].mmdit.remat
  assert not build.load_policy(files[0])[0].mmdit.remat


def test_an_autoencoder_of_another_model_is_refused(files):
  with pytest.raises(ValueError, match="not those of an autoencoder"):
    build.load_autoencoder(files[0])


def test_adapters_are_chosen_when_loading(files):
  loaded, _ = build.load_policy(files[0], config_dict.ConfigDict(LORA))
  assert (loaded.lora.rank, loaded.lora.alpha) == (2, 4.0)
  assert loaded.lora.targets == ("blocks/.*",)
  hash(loaded)  # a static argument of jit
  off = config_dict.ConfigDict(LORA | {"rank": 0})
  assert build.load_policy(files[0], off)[0].lora is None


def test_a_reward_model_comes_back_from_its_file(files):
  config, params = build.load_reward(files[2])
  assert config == REWARD
  equal(params, files[3])


def test_what_a_run_trained_comes_back(files, tmp_path):
  base, params = build.load_policy(files[0])
  assert build.load_trained("", base, params) is None
  adapted, _ = build.load_policy(files[0], config_dict.ConfigDict(LORA))
  shapes = jax.eval_shape(adapted.init_trainable, jax.random.key(0), params)
  trained = random_tree(shapes, seed=1)
  path = str(tmp_path / "trained.safetensors")
  assets.save(path, trained, {}, dtype=np.float32)
  equal(build.load_trained(path, adapted, params), trained)
  was = {"lora": LORA | {"alpha": 1.0}}
  assets.save(
      path, trained, {"config": json.dumps(was)}, dtype=np.float32
  )
  with pytest.raises(ValueError, match=r"lora.alpha is 4.0; .* with 1.0"):
    build.load_trained(path, adapted, params)
  other = {"init": "other.safetensors", "base_digest": "0"}
  assets.save(path, trained, other, dtype=np.float32)
  with pytest.raises(ValueError, match=r"on 'other.*another base"):
    build.load_trained(path, adapted, params, files[0])
  # Adapters are not the weights that full fine-tuning trains.
  with pytest.raises(ValueError, match=r"trained.*are of another model"):
    build.load_trained(path, base, params)


def test_a_file_of_the_other_kind_is_refused(files):
  with pytest.raises(ValueError, match=r"reward.*not those of a policy"):
    build.load_policy(files[2])
  with pytest.raises(ValueError, match=r"policy.*not those of a reward model"):
    build.load_reward(files[0])


def test_a_file_of_another_size_names_its_first_leaf(files, tmp_path):
  path = str(tmp_path / "wide.safetensors")
  assets.save(path, files[1], {"policy": policy(width=32).to_json()})
  with pytest.raises(ValueError, match=r"wide.*another model: mmdit/blocks/"):
    build.load_policy(path)


@pytest.mark.parametrize("load", [build.load_policy, build.load_reward])
def test_a_missing_file_is_named(load):
  with pytest.raises(ValueError, match=r"'gone.safetensors' do not exist"):
    load("gone.safetensors")
