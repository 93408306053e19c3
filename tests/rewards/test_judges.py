"""What a judge claims, and judges that do not exist."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from spatialrl.data import scenes, tokenizers
from spatialrl.io import assets
from spatialrl.models import reward_model
from spatialrl.parallel.mesh import make_mesh
from spatialrl.records import Signals
from spatialrl.rewards import judges
from spatialrl.scenes import grammar, render
from spatialrl.scenes.layout import Layout


@pytest.fixture
def weights_of_a_reward(tmp_path):
  model = reward_model.RewardConfig(
      vocabulary=len(tokenizers.load()), size=16, patch=8, width=16, depth=1,
      heads=2,
  )
  path = tmp_path / "reward.safetensors"
  params = jax.device_get(reward_model.init(model, jax.random.key(0)))
  assets.save(path, params, {"reward": model.to_json()})
  return str(path)


_PROMPTS = ["p0", "p1", "p2"]
_FLIPS = [["p0 x"], ["p1 x", "p1 y"], []]


def judge_by(table):
  """A judge that looks scores up by (image index, prompt)."""

  def judge(images, prompts):
    index = np.rint((images[:, 0, 0, 0] + 1) * 127.5).astype(int)
    pairs = zip(index.tolist(), prompts, strict=True)
    return Signals(scalar=np.array([table[p] for p in pairs], np.float32))

  return judge


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_a_claim_beats_every_flip_for_the_same_image(batch):
  images = np.arange(3, dtype=np.uint8)[:, None, None, None]
  images = np.broadcast_to(images, (3, 4, 4, 3))
  table = {
      (0, "p0"): 1.0, (0, "p0 x"): 0.5,
      (1, "p1"): 1.0, (1, "p1 x"): 0.0, (1, "p1 y"): 1.0,
      (2, "p2"): -9.0,
  }
  claimed = judges.claims(judge_by(table), images, _PROMPTS, _FLIPS, batch)
  np.testing.assert_array_equal(claimed, [True, False, True])


def test_the_oracle_judges_pixels():
  prompt = "a red circle left of a blue square"
  layout = Layout(
      np.array([(0.25, 0.5), (0.75, 0.5)], np.float32),
      np.array([0.14, 0.14], np.float32),
      np.arange(2, dtype=np.int32),
  )
  image = render.to_float(render.render(grammar.parse(prompt), layout))
  mesh = make_mesh((-1, 1, 1))
  made = judges.make_judges(ConfigDict({"oracle": {}}), mesh)
  flipped = "a red circle right of a blue square"
  signals = made["oracle"](np.stack([image, image]), [prompt, flipped])
  np.testing.assert_array_equal(signals.scalar, [1.0, 0.0])


def test_the_oracle_maps_the_things_of_the_prompt():
  prompt = "a red circle left of a blue square"
  layout = Layout(
      np.array([(0.25, 0.5), (0.75, 0.5)], np.float32),
      np.array([0.14, 0.14], np.float32),
      np.arange(2, dtype=np.int32),
  )
  image = render.to_float(render.render(grammar.parse(prompt), layout))
  made = judges.make_judges(
      ConfigDict({"oracle": {"map_side": 4}}), make_mesh((-1, 1, 1))
  )
  other = "a red circle left of a white cross"
  seen = made["oracle"](np.stack([image, image]), [prompt, other]).map
  assert seen.shape == (2, 4, 4)
  # Both things straddle the middle rows; the other prompt has no square.
  np.testing.assert_array_equal(np.asarray(seen[0]) > 0, [
      [False] * 4, [True] * 4, [True] * 4, [False] * 4,
  ])
  np.testing.assert_array_equal(seen[1, :, :2], seen[0, :, :2])
  np.testing.assert_array_equal(seen[1, :, 2:], 0.0)
  np.testing.assert_allclose(np.asarray(seen[0, 1, 0]), 0.56**2, atol=0.05)


def test_pairs_are_compared_within_a_group_and_may_tie(weights_of_a_reward):
  settings = {"weights": weights_of_a_reward, "group": 3, "tie_margin": 0.0}
  config = ConfigDict({"pairwise": settings})
  mesh = make_mesh((-1, 1, 1))
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (6, 16, 16, 3)).astype(np.float32)
  prompts = ["a red circle left of a blue square"] * 6
  signals = judges.make_judges(config, mesh)["pairwise"](images, prompts)
  score = np.asarray(signals.scalar).reshape(2, 3)
  want = (score[:, :, None] > score[:, None]) + 0.5 * np.eye(3)
  np.testing.assert_array_equal(signals.pair, want)
  gaps = np.abs(score[:, :, None] - score[:, None])
  config.pairwise.tie_margin = float(np.median(gaps[gaps > 0]))
  tied = judges.make_judges(config, mesh)["pairwise"](images, prompts).pair
  np.testing.assert_array_equal(
      tied == 0.5, gaps <= np.float32(config.pairwise.tie_margin)
  )
  assert 6 < (np.asarray(tied) == 0.5).sum() < 18
  config.pairwise.tie_margin = -1.0
  with pytest.raises(ValueError, match="tie_margin is -1.0"):
    judges.make_judges(config, mesh)


def test_an_unknown_judge_is_named():
  with pytest.raises(ValueError, match=r"'clip'.*spatial_score"):
    judges.make_judges(ConfigDict({"clip": {}}), make_mesh((-1, 1, 1)))


@pytest.mark.parametrize("squash", [False, True])
def test_packaged_heads_judge_their_aspect_and_find_the_flaw(squash):
  pairs = {
      "relations": scenes.reward_pairs(7, 0, 48, size=32, relations=(1,)),
      "things": scenes.thing_pairs(7, 0, 48, size=32, relations=(1,)),
  }
  settings = {
      "weights": "heads.safetensors", "reward": "reward.safetensors",
      "squash": squash,
  }
  made = judges.make_judges(
      ConfigDict(dict.fromkeys(pairs, settings)), make_mesh((-1, 1, 1))
  )
  for name, data in pairs.items():
    right, wrong = (
        made[name](images.astype(np.float32) / 127.5 - 1, data.prompts)
        for images in (data.perfect, data.perturbed)
    )
    # In (0, 1) the surest scores round to 1 and tie.
    assert np.mean(right.scalar >= wrong.scalar) > 0.8, name
    assert np.mean(right.scalar > wrong.scalar) > 0.7, name
    assert right.map.shape == (48, 4, 4)
    assert np.mean(wrong.map) > 2 * np.mean(right.map), name
    inside = (0 <= right.scalar) & (right.scalar <= 1)
    assert bool(inside.all()) == squash
    tokenizer = tokenizers.load()
    ids, mask = tokenizers.encode(
        tokenizer, data.prompts, made[name].model.max_tokens
    )
    again = made[name].score(
        data.perfect.astype(np.float32) / 127.5 - 1, ids, mask
    )
    np.testing.assert_allclose(again, right.scalar, rtol=1e-3, atol=1e-3)
    assert made[name].compilations() == 1
