"""Heads see the backbone they were made for, and their map sees places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.io import assets
from spatialrl.models import build, reward_heads, reward_model
from spatialrl.train.heads import found

CONFIG = reward_model.RewardConfig(
  vocabulary=12, size=8, patch=4, max_tokens=8, width=16, depth=2, heads=2
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Files of two reward models and of heads on the first."""
  folder = tmp_path_factory.mktemp("heads")
  for seed in (0, 1):
    params = jax.jit(lambda key: reward_model.init(CONFIG, key))(
      jax.random.key(seed)
    )
    assets.save(
      folder / f"reward{seed}.safetensors", jax.device_get(params),
      {"reward": CONFIG.to_json()},
    )
  reward = str(folder / "reward0.safetensors")
  heads = reward_heads.init(CONFIG, jax.random.key(2))
  assets.save(
    folder / "heads.safetensors", jax.device_get(heads),
    {"heads": "[]", "reward_digest": assets.digest(reward)},
  )
  return folder


def test_heads_of_another_backbone_are_refused(files):
  heads, reward = files / "heads.safetensors", files / "reward0.safetensors"
  config, params, found_heads = build.load_heads(str(heads), str(reward))
  assert config == CONFIG and {"backbone"} < set(params)
  assert "flaws_out" in found_heads
  with pytest.raises(ValueError, match="trained on another reward model"):
    build.load_heads(str(heads), str(files / "reward1.safetensors"))
  with pytest.raises(ValueError, match="not those of heads"):
    build.load_heads(str(reward), str(reward))


def test_scores_and_flaws_depend_on_image_and_words(files):
  _, params, heads = build.load_heads(
    str(files / "heads.safetensors"), str(files / "reward0.safetensors")
  )
  params = jax.tree.map(jnp.asarray, params)
  images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype("f4")
  ids = np.int32([[3, 4, 5], [6, 7, 8]])
  mask = np.ones((2, 3), bool)

  @jax.jit
  def judge(images, ids):
    return reward_heads.judge(CONFIG, params, heads, images, ids, mask)

  scores, flaws = judge(images, ids)
  assert scores.shape == (2, 3) and flaws.shape == (2, 2, 2)
  for other in (judge(images[:, ::-1], ids), judge(images, ids[:, ::-1])):
    assert np.abs(scores - other[0]).min() > 1e-6
    assert np.abs(flaws - other[1]).min() > 1e-6


def test_degraded_images_are_softer_and_keep_their_mean():
  checks = np.indices((8, 8)).sum(0) % 2 * 2.0 - 1
  images = jnp.broadcast_to(jnp.float32(checks)[None, ..., None], (4, 8, 8, 3))
  out = reward_heads.degraded(images, jax.random.key(0), noise=0.0)
  contrast = jnp.abs(jnp.diff(out, axis=2)).mean((1, 2, 3))
  assert (contrast < 0.85 * 2).all()
  flat = jnp.full((2, 8, 8, 3), 0.3)
  np.testing.assert_allclose(
    reward_heads.degraded(flat, jax.random.key(0), noise=0.0), flat, atol=1e-6
  )


def test_pointing_and_auc_of_maps_that_are_known():
  truth = np.zeros((3, 2, 2), np.float32)
  truth[:, 0, 0] = 1.0
  right = truth + np.float32([[0, 0.1], [0.2, 0.3]])
  assert found(right, truth) == (1.0, 1.0)
  assert found(-right, truth) == (0.0, 0.0)
  mixed = right.copy()
  mixed[0] = -right[0]
  pointing, auc = found(mixed, truth)
  assert pointing == pytest.approx(2 / 3) and 0 < auc < 1
