"""Every credit is a non-negative weight of mean 1 over each image and step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl import records
from spatialrl.rl import credit

W, B, H, C = 3, 4, 5, 2


def trajectory(rng):
  return records.Trajectory(
    x=jnp.asarray(rng.normal(size=(W + 1, B, H, H, C)), jnp.float32),
    t=jnp.linspace(1.0, 0.4, W + 1),
    mean=jnp.asarray(rng.normal(size=(W, B, H, H, C)), jnp.float32),
    std=jnp.linspace(0.8, 0.4, W),
    log_prob=jnp.asarray(rng.normal(size=(W, B, H, H)), jnp.float32),
    final=jnp.asarray(rng.normal(size=(B, H, H, C)), jnp.float32),
    group=jnp.zeros(B, jnp.int32),
    attention=jnp.asarray(rng.exponential(size=(W, B, H, H)), jnp.float32),
  )


OPTIONS = {
  "attention_map": {"alpha": 0.7},
  "judge_map": {"judge": "boxes", "alpha": 0.7},
  "patch_quality": {"judge": "patches"},
}


def signals(rng):
  return {
    "score": records.Signals(scalar=jnp.arange(B, dtype=jnp.float32)),
    "boxes": records.Signals(map=jnp.asarray(rng.random((B, H, H)))),
    "patches": records.Signals(
      map=jnp.asarray(rng.random((B, H, H)), jnp.float32),
      trusted_map=jnp.asarray(rng.random((B, H, H)), jnp.float32),
    ),
  }


def entry(name, **override):
  options = OPTIONS.get(name, {}) | override
  if name == "reweight":
    options["mean_std"] = 0.6  # that of the trajectory
  return jax.jit(functools.partial(credit.CREDITS[name], **options))


@pytest.mark.parametrize("name", credit.CREDITS)
def test_credit_has_mean_one(name, rng):
  weight = entry(name)(trajectory(rng), signals(rng))
  maps = 2 if name == "patch_quality" else W  # of the own and the trusted image
  assert weight.shape == (maps, B, H, H) and weight.dtype == jnp.float32
  assert np.all(np.asarray(weight) >= 0)
  np.testing.assert_allclose(jnp.mean(weight, (0, 2, 3)), 1.0, rtol=1e-6)


def test_uniform_is_one_everywhere(rng):
  weight = credit.uniform(trajectory(rng), {})
  np.testing.assert_array_equal(weight, 1.0)


def test_noisier_steps_weigh_more(rng):
  path = trajectory(rng)
  weight = credit.reweight(path, {}, 0.5)
  np.testing.assert_allclose(weight[:, 0, 0, 0] * 0.5, path.std, rtol=1e-6)


@pytest.mark.parametrize("name", ["attention_map", "judge_map"])
def test_without_alpha_a_map_is_uniform_to_the_bit(name, rng):
  weight = entry(name, alpha=0.0)(trajectory(rng), signals(rng))
  np.testing.assert_array_equal(weight, 1.0)


def test_attention_has_a_floor_and_a_cap(rng):
  path = trajectory(rng)
  weight = np.asarray(entry("attention_map", cap=1.5)(path, {}))
  assert weight.min() >= 0.3
  order = np.argsort(np.asarray(path.attention)[0, 0].ravel())
  assert np.all(np.diff(weight[0, 0].ravel()[order]) >= 0)
  assert weight.max() < np.asarray(entry("attention_map")(path, {})).max()


@pytest.mark.parametrize("control", ["shuffled", "other"])
def test_controls_keep_the_values_and_move_them(control, rng):
  path = trajectory(rng)
  plain = np.asarray(entry("attention_map")(path, {}))
  moved = np.asarray(entry("attention_map", control=control)(path, {}))
  assert np.abs(moved - plain).max() > 0.1
  np.testing.assert_allclose(
    np.sort(moved.ravel()), np.sort(plain.ravel()), rtol=1e-6
  )


def test_an_inverted_map_spares_what_the_judge_marks(rng):
  found = signals(rng)
  weight = entry("judge_map", invert=True)(trajectory(rng), found)
  order = np.argsort(np.asarray(found["boxes"].map)[0].ravel())
  assert np.all(np.diff(np.asarray(weight)[0, 0].ravel()[order]) <= 0)


def test_the_worse_an_image_the_more_the_trusted_one_counts(rng):
  quality = jnp.asarray([1.0, 0.7, 0.3, 0.0])[:, None, None]
  quality = jnp.broadcast_to(quality, (B, H, H))
  patches = records.Signals(map=quality, trusted_map=quality)
  weight = credit.patch_quality(
    trajectory(rng), {"patches": patches}, judge="patches"
  )
  np.testing.assert_allclose(weight[0], 2 * quality, atol=1e-5)
  np.testing.assert_allclose(weight[1], 2 - 2 * quality, atol=1e-5)


def test_a_map_that_is_not_there_is_named(rng):
  path = dataclasses.replace(trajectory(rng), attention=None)
  with pytest.raises(ValueError, match="rollout.attention_blocks"):
    credit.attention_map(path, {}, alpha=0.5)
  with pytest.raises(ValueError, match="credit.judge is 'score'.*no map"):
    credit.judge_map(path, signals(rng), judge="score", alpha=0.5)
  with pytest.raises(ValueError, match="credit.judge is 'boxes'.*trusted"):
    credit.patch_quality(path, signals(rng), judge="boxes")
  with pytest.raises(ValueError, match="credit.control is 'mean'"):
    credit.attention_map(trajectory(rng), {}, alpha=0.5, control="mean")
