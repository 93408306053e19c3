"""The judge on Qwen2.5-VL: its numbers, its files, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from spatialrl.io import assets
from spatialrl.models import spatial_score
from spatialrl.parallel.mesh import make_mesh
from spatialrl.rewards import qwen
from spatialrl.rewards.judges import make_judges
from spatialrl.train import tiny

PROMPTS = ["a dog", "a cat left of a dog", "a hat"]
IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3))
IMAGES = IMAGES.astype(np.float32)


@pytest.fixture(scope="module")
def mesh():
  return make_mesh((-1, 1, 1))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """(folder of a tiny Qwen2.5-VL, file of a trained part on it)."""
  root = tmp_path_factory.mktemp("judge")
  base = tiny.write_qwen(root / "qwen")
  return base, tiny.write_trained(root / "trained.safetensors", base)


def config(files, **changes):
  fields = {
    "folder": str(files[0]), "weights": str(files[1]), "dtype": "float32",
    "batch": 2,
  }
  return config_dict.ConfigDict({"qwen_score": fields | changes})


def test_a_score_is_that_of_the_model_in_calls_of_one_size(files, mesh):
  judge = make_judges(config(files), mesh)["qwen_score"]
  signals = judge(IMAGES, PROMPTS)
  assert judge.compilations() == 1 and signals.scalar.shape == (3,)
  backbone, base = qwen.load_base(files[0], "float32", mesh)
  model, reading, trained = qwen.load(files[1], backbone)
  assert "lm_head" not in base and reading == tiny.READING
  reader = qwen.Reader(files[0], model, reading)
  inputs = reader.inputs(reader.tokens(PROMPTS), IMAGES)
  score = jax.jit(lambda i: spatial_score.score(model, base, trained, i))
  mu, sigma = score(inputs)
  np.testing.assert_allclose(signals.scalar, mu, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(signals.sigma, sigma, rtol=1e-4)
  assert np.ptp(mu) > 1e-4


def test_a_trained_part_comes_back_with_what_it_needs(files, mesh, tmp_path):
  backbone, _ = qwen.load_base(files[0], "float32", mesh)
  first = qwen.load(files[1], backbone)
  qwen.save(tmp_path / "again.safetensors", *first)
  again = qwen.load(tmp_path / "again.safetensors", backbone)
  assert again[:2] == first[:2]
  jax.tree.map(np.testing.assert_array_equal, again[2], first[2])


def test_weights_of_something_else_are_named(files, mesh, tmp_path):
  backbone, _ = qwen.load_base(files[0], "float32", mesh)
  with pytest.raises(ValueError, match="not those of a SpatialScore"):
    qwen.load("reward.safetensors", backbone)
  trained, metadata = assets.load(files[1])
  trained["token"] = trained["token"][:-1]
  other = tmp_path / "other.safetensors"
  assets.save(other, trained, metadata)
  with pytest.raises(ValueError, match="another model: token has shape"):
    qwen.load(other, backbone)


def test_tokenizer_and_model_must_agree(files, mesh, tmp_path):
  backbone, _ = qwen.load_base(files[0], "float32", mesh)
  model, reading, _ = qwen.load(files[1], backbone)
  other = dataclasses.replace(
    model, backbone=dataclasses.replace(backbone, image_token=259)
  )
  with pytest.raises(ValueError, match="image token 260; .* says 259"):
    qwen.Reader(files[0], other, reading)
  spoken = dataclasses.replace(model, reward_token=259)
  with pytest.raises(ValueError, match="reward_token is 259; .* from 261 on"):
    qwen.Reader(files[0], spoken, reading)
  for pixels in (0, 50):
    wrong = dataclasses.replace(reading, pixels=pixels)
    with pytest.raises(ValueError, match=f"pixels is {pixels}; .* of 28"):
      qwen.Reader(files[0], model, wrong)
  with pytest.raises(ValueError, match=r"tokenizer\.json' does not exist"):
    qwen.Reader(tmp_path, model, reading)


def test_a_prompt_that_is_too_long_is_refused_beforehand(files):
  judge = config(files).qwen_score
  qwen.check(judge, PROMPTS)
  with pytest.raises(ValueError, match="tokens with its image; max_tokens"):
    qwen.check(judge, [*PROMPTS, "cup " * 60])


def test_a_folder_of_another_model_or_cut_short_is_named(mesh, tmp_path):
  vae = tiny.write_model(tmp_path / "vae", tiny.VAE)
  with pytest.raises(ValueError, match="AutoencoderKL; qwen_vl is needed"):
    qwen.load_base(vae, "float32", mesh)
  base = tiny.write_qwen(tmp_path / "qwen")
  file = base / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-10])
  with pytest.raises(ValueError, match=r"model\.safetensors"):
    qwen.load_base(base, "float32", mesh)
