"""Objectives on finished images, on a linear velocity field."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import (
  BASE,
  CPS,
  DRAWS,
  GROUP,
  MOVED,
  C,
  H,
  M,
  field,
  look,
  rolled,
  trusting,
  value,
  with_advantage,
)

from spatialrl.rl import anchors, forward, matching
from spatialrl.rl.view import View


@pytest.fixture(scope="module")
def noisy():
  return rolled(CPS, 3, "ode")


def test_nft_without_its_weights_is_signed_regression_with_a_tether(rng):
  v, v_old, x0, noise = (
    jnp.asarray(rng.normal(size=(M, H, H, C)), jnp.float32) for _ in range(4)
  )
  t, mix = jnp.linspace(0.1, 0.9, M), 0.3
  advantage = jnp.asarray(rng.normal(size=M), jnp.float32)
  t_ = t[:, None, None, None]
  x_t = (1 - t_) * x0 + t_ * noise

  def loss(v):
    rows = forward.nft(
      v, v_old, x0, x_t, t, advantage, mix=mix, adv_clip=5.0, adaptive=False
    )
    return rows.sum()

  share = (jnp.clip(advantage, -5, 5) / 10 + 0.5)[:, None, None, None]
  closed = (2 * share - 1) * (v_old - (noise - x0)) + mix * (v - v_old)
  want = 5 * 2 * t_**2 * closed / (H * H * C)
  np.testing.assert_allclose(jax.grad(loss)(v), want, atol=2e-6)


def test_nft_moves_towards_what_was_good(noisy):
  settings = DRAWS | {"mix": 1.0, "adv_clip": 5.0}
  gradient = jax.grad(
    lambda w: value("nft", w, noisy, **settings)
  )(BASE)
  flat = jax.grad(
    lambda w: value(
      "nft", w, with_advantage(noisy, jnp.zeros(M)), **settings
    )
  )(BASE)
  opposite = jax.grad(
    lambda w: value(
      "nft", w, with_advantage(noisy, -noisy.advantage[0, :, 0, 0]), **settings
    )
  )(BASE)
  np.testing.assert_allclose(flat, 0.0, atol=1e-6)
  assert np.abs(gradient).max() > 1e-3
  np.testing.assert_allclose(opposite, -gradient, rtol=1e-4, atol=1e-6)


def test_weighted_fm_with_unit_weights_is_flow_matching(noisy):
  batch = with_advantage(noisy, jnp.ones(M))
  x0, key = batch.trajectory.final, jax.random.key(3)
  x_t, t, target = forward.noised(x0, key, 1, **DRAWS)
  want = jnp.mean(jnp.square(field(MOVED)(x_t, t) - target))
  got = value("weighted_fm", MOVED, batch, 1, **DRAWS)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_patches_are_learned_from_the_image_that_weighs_them(noisy):
  ones = jnp.ones((M, H, H))
  batch = dataclasses.replace(
    trusting(noisy), weight=jnp.stack([ones, 0 * ones])
  )
  own = value("patch_fm", MOVED, batch, 1, **DRAWS)
  plain = with_advantage(batch, jnp.ones(M))
  want = value("weighted_fm", MOVED, plain, 1, **DRAWS)
  np.testing.assert_allclose(own, want, rtol=1e-6)
  swapped = dataclasses.replace(batch, weight=batch.weight[::-1])
  final = dataclasses.replace(batch.trajectory, final=batch.trusted)
  want = value(
    "weighted_fm", MOVED, dataclasses.replace(plain, trajectory=final), 1,
    **DRAWS,
  )
  np.testing.assert_allclose(
    value("patch_fm", MOVED, swapped, 1, **DRAWS), want, rtol=1e-6
  )


CONTRAST = DRAWS | {"scale": 5.0, "temperature": 1.0}


def test_texts_that_say_the_same_cannot_be_told_apart(noisy):
  loss = value("contrastive_fm", MOVED, trusting(noisy), others=1, **CONTRAST)
  np.testing.assert_allclose(loss, np.log(3), rtol=1e-5)


def test_the_contrast_is_a_cross_entropy_at_one_noise(noisy):
  batch = trusting(noisy, contrast=0.7)
  x_t, t, target = forward.noised(
    batch.trusted, jax.random.key(3), 0, group=jnp.zeros(M, jnp.int32), **DRAWS
  )
  assert len(np.unique(t)) == 1
  np.testing.assert_allclose(
    x_t - (1 - t[:, None, None, None]) * batch.trusted,
    jnp.broadcast_to((x_t - (1 - t[0]) * batch.trusted)[:1], x_t.shape),
    atol=1e-5,
  )
  own, other = (
    np.square(v - target).mean((1, 2, 3))
    for v in (field(MOVED)(x_t, t), field(MOVED)(x_t, t) + 0.7)
  )
  logits = 5.0 * np.exp(-np.stack([own, other], 1))
  want = np.log(np.exp(logits).sum(1)) - logits[:, 0]
  got = value("contrastive_fm", MOVED, batch, others=0, **CONTRAST)
  np.testing.assert_allclose(got, want.mean(), rtol=1e-5)


def test_other_prompts_are_those_of_other_groups(noisy):
  batch = trusting(noisy)
  pooled = jnp.where(GROUP[:, None] == 0, 1.0, -1.0) * jnp.ones((M, C))
  batch = dataclasses.replace(
    batch, conditioning=dataclasses.replace(batch.conditioning, pooled=pooled)
  )
  view, seen = look(MOVED, batch), []
  ask = view.velocity

  def spy(x, t, who="new", text=()):
    seen.append(text)
    return ask(x, t, who, text)

  view.velocity = spy
  matching.contrastive_fm(
    view, 0, jax.random.key(3), others=1, **CONTRAST
  )
  (moved,) = seen[2]
  np.testing.assert_array_equal(moved.pooled, -pooled)


def test_replay_is_flow_matching_on_trusted_images(noisy):
  """Its minimum over constant fields is where the trusted images are."""
  batch, key = trusting(noisy), jax.random.key(3)
  got = anchors.fm_replay(look(MOVED, batch), 0, key, time_shift=3.0)
  again = anchors.fm_replay(look(MOVED, batch), 1, key, time_shift=3.0)
  assert got.shape == (M,) and np.all(np.asarray(got) > 0)
  assert np.abs(got - again).min() > 1e-4  # every visit has noise of its own
  x0 = batch.trusted

  def exact(x, t):  # knows the images, hence the noise in x
    t = t[:, None, None, None]
    return (x - x0) / t

  view = View({"new": exact}, batch, transition=CPS, log_prob=None)
  np.testing.assert_allclose(
    anchors.fm_replay(view, 0, key, time_shift=3.0), 0.0, atol=1e-6
  )
  other = dataclasses.replace(batch, trusted=x0 + 1.0)
  view = View({"new": exact}, other, transition=CPS, log_prob=None)
  assert anchors.fm_replay(view, 0, key, time_shift=3.0).min() > 0.5


def test_draws_spread_over_time(noisy):
  x0 = noisy.trajectory.final
  for k in range(4):
    _, t, _ = forward.noised(
      x0, jax.random.key(0), k, draws=4, time_shift=1.0, group=GROUP
    )
    assert np.all((t >= k / 4) & (t <= (k + 1) / 4))
    assert len(np.unique(t)) == 2  # one a group
