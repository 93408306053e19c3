"""The Inverse Diffuser: what it may change, and what it starts from."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.data import tokenizers
from spatialrl.flow.transition import TRANSITIONS, gaussian_log_prob
from spatialrl.models import build
from spatialrl.models import editor as editors
from spatialrl.reflect import editing
from spatialrl.scenes import instructions
from spatialrl.scenes.graph import COLOURS
from spatialrl.scenes.instructions import Instruction
from spatialrl.train.configs import load_config

CONFIG = pathlib.Path(__file__).parents[2] / "configs/rl_rig.py"
TOLD = [Instruction("move", "red circle", ("upper", "left")), None]
BOXES = [{"red circle": np.float32([0.5, 0.5, 0.7, 0.7])}] * 2
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
REGION = editing.regions(TOLD, BOXES, 4)
IDS = editing.token_ids(TOLD)


def random_like(shapes):
  """Weights drawn by numpy, which compiles nothing."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes
  )


@pytest.fixture(scope="module")
def base():
  config = load_config(CONFIG, "tiny").diffuser.policy
  config.prediction = "velocity"
  policy = build.make_policy(config, len(tokenizers.load()))
  return policy, random_like(jax.eval_shape(policy.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def made(base):
  return editors.from_policy(*base, 0.7, jax.random.key(2))


def test_at_the_start_it_is_the_policy_that_reads_the_instruction(base, made):
  policy, params = base
  editor, weights = made

  @jax.jit
  def both(weights, params, x, t):
    cond = editing.condition(editor, weights, IMAGES, IDS, REGION)
    return (
        editor.velocity(weights, None, x, t, cond),
        policy.velocity(params, None, x, t, cond),
    )

  x = np.random.default_rng(1).normal(size=(2, *editor.latent_shape))
  v, same = both(weights, params, x.astype(np.float32), np.full(2, 0.5, "f4"))
  np.testing.assert_allclose(v[REGION], same[REGION], atol=2e-5)
  assert np.abs(v[~REGION] - same[~REGION]).max() > 0.1


def test_known_words_keep_their_embeddings(base, made):
  known = tokenizers.load().get_vocab()
  for word in COLOURS:
    np.testing.assert_array_equal(
        made[1]["text"]["words"][instructions.WORDS.index(word)],
        base[1]["text"]["words"][known[word]],
    )


def test_outside_of_the_region_the_path_ends_at_the_source(made):
  editor, params = made
  transition = functools.partial(TRANSITIONS["cps"], noise_level=0.4)

  @jax.jit
  def path(params, key):
    cond = editing.condition(editor, params, IMAGES, IDS, REGION)
    return cond.source[..., :-1], editing.rollout(
        editor, params, None, cond, editing.times(editor, steps=3, shift=2.0),
        key, jnp.arange(2), transition=transition, log_prob=gaussian_log_prob,
        window=2,
    )

  source, path = path(params, jax.random.key(4))
  gap = np.abs(np.asarray(path.final - source))
  assert gap[~REGION].max() < 1e-5
  assert gap[REGION].max() > 0.1
  assert path.t[0] == pytest.approx(0.7)


def test_pixels_change_in_the_region_alone(made):
  editor, params = made
  inverse = editing.Inverse(editor, steps=2, shift=2.0)
  edited, region = inverse(
      params, None, IMAGES, TOLD, BOXES, jax.random.key(0), np.arange(2)
  )
  np.testing.assert_array_equal(edited[1], IMAGES[1])
  inside = np.repeat(np.repeat(region[0], 4, 0), 4, 1)
  changed = (edited[0] != IMAGES[0]).any(-1)
  assert changed[inside].mean() > 0.9 and not changed[~inside].any()


def test_a_stored_editor_comes_back(tmp_path, made):
  editor, params = made
  path = tmp_path / "editor.safetensors"
  editors.assets.save(
      path, jax.device_get(params), {"editor": editor.to_json()}, np.float32
  )
  again, weights = editors.load(path)
  assert again == editor
  jax.tree.map(np.testing.assert_array_equal, weights, jax.device_get(params))
  with pytest.raises(ValueError, match="are not those of an editor"):
    editors.load("policy.safetensors")


def test_a_start_outside_of_time_is_refused(base):
  with pytest.raises(ValueError, match="start is 1.0; it must be between"):
    editors.from_policy(*base, 1.0, jax.random.key(0))
