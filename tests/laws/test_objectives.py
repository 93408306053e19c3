"""Objectives beyond the ratio, on a linear velocity field."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow import rollout as rollouts
from spatialrl.flow import schedules, transition
from spatialrl.records import Conditioning, UpdateBatch
from spatialrl.rl import anchors, forward, matching, objectives, pairwise
from spatialrl.rl.view import View

M, H, C, STEPS = 8, 2, 3, 4
GROUP = jnp.arange(M) // 4
CPS = functools.partial(transition.cps, noise_level=0.6)
BASE = 0.5 * jax.random.normal(jax.random.key(7), (C, C))
TARGET = jax.random.normal(jax.random.key(8), (H, H, C))


def field(weights):
  def velocity(x, t, text=None):
    v = jnp.tanh(x @ weights) * (1 + t[:, None, None, None])
    return v if text is None else v + text.pooled[:, None, None]

  return velocity


def judge(latents):
  return -jnp.mean(jnp.square(latents - TARGET[None]), (1, 2, 3))


def rolled(step, window, last_step):
  path = rollouts.rollout(
    field(BASE),
    jax.random.normal(jax.random.key(1), (M, H, H, C)),
    schedules.shifted(STEPS, shift=2.0),
    jax.random.key(2),
    GROUP,
    transition=step,
    log_prob=None if step is transition.ode else transition.gaussian_log_prob,
    window_start=0,
    window=window,
    last_step=last_step,
  )
  reward = judge(path.final)
  text = jnp.zeros((M, 1, 1))
  return UpdateBatch(
    trajectory=path,
    conditioning=Conditioning(text, text[:, 0], jnp.ones((M, 1), bool)),
    ids=jnp.zeros((M, 1), jnp.int32),
    reward=reward,
    advantage=(reward - reward.mean())[None, :, None, None],
    keep=jnp.ones(M, bool),
    weight=jnp.ones((max(window, 1), M, H, H)),
    visits=jnp.arange(window),
  )


@pytest.fixture(scope="module")
def noisy():
  return rolled(CPS, 3, "ode")


@pytest.fixture(scope="module")
def smooth():
  return rolled(transition.ode, STEPS, "noise")


def look(weights, batch, step=CPS, old=BASE):
  return View(
    {"new": field(weights), "old": field(old), "reference": field(BASE)},
    batch,
    transition=step,
    log_prob=transition.gaussian_log_prob,
    judge=judge,
  )


def trusting(batch, contrast=0.0):
  """The batch beside images that are right, and prompts that are not."""
  text = dataclasses.replace(
    batch.conditioning, pooled=jnp.full((M, C), contrast)
  )
  trusted = jnp.roll(batch.trajectory.final, 1, 0)
  return dataclasses.replace(batch, trusted=trusted, contrast=text)


def value(name, weights, batch, k=0, **settings):
  view = look(weights, batch)
  loss, metrics, _ = objectives.OBJECTIVES[name](
    view, k, jax.random.key(3), **settings
  )
  assert loss.shape == (M,)
  assert all(metric.shape == (M,) for metric in metrics.values())
  return loss.mean()


MOVED = BASE + 0.05 * jax.random.normal(jax.random.key(9), (C, C))
DRAWS = {"draws": 2, "time_shift": 3.0}


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
      "nft", w, _advantage(noisy, jnp.zeros(M)), **settings
    )
  )(BASE)
  opposite = jax.grad(
    lambda w: value("nft", w, _advantage(noisy, -noisy.advantage[0, :, 0, 0]),
                    **settings)
  )(BASE)
  np.testing.assert_allclose(flat, 0.0, atol=1e-6)
  assert np.abs(gradient).max() > 1e-3
  np.testing.assert_allclose(opposite, -gradient, rtol=1e-4, atol=1e-6)


def _advantage(batch, advantage):
  return dataclasses.replace(batch, advantage=advantage[None, :, None, None])


def test_weighted_fm_with_unit_weights_is_flow_matching(noisy):
  batch = _advantage(noisy, jnp.ones(M))
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
  plain = _advantage(batch, jnp.ones(M))
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


@pytest.mark.parametrize("name", ["dpo", "d3po"])
def test_pairs_at_the_reference_have_the_gradient_of_reinforce(name, noisy):
  """-log sigmoid has slope -1/2 at 0: each pair pushes its two apart."""
  settings = {"dpo": DRAWS | {"beta": 4.0},
              "d3po": {"beta": 2.0, "clip_range": 0.5}}[name]
  got = jax.grad(lambda w: value(name, w, noisy, **settings))(BASE)
  wins = pairwise.pairs(noisy.reward, GROUP, noisy.keep)
  pull = (wins.sum(1) - wins.sum(0)) / wins.sum()

  def statistic(weights):
    if name == "d3po":
      step = look(weights, noisy).step(0)
      return step.log_prob.mean((1, 2)) * 2.0
    x_t, t, target = forward.noised(
      noisy.trajectory.final, jax.random.key(3), 0, group=GROUP, **DRAWS
    )
    error = forward.flow_error(field(weights)(x_t, t), target)
    return -error.mean((1, 2)) * 2.0

  want = -0.5 * jax.grad(lambda w: jnp.sum(pull * statistic(w)))(BASE)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
  assert np.abs(want).max() > 1e-3


def test_rank_weights_of_two_images_are_one_factor_a_pair():
  reward = jnp.float32([0.9, 0.2, 0.1, 0.7])
  group = jnp.int32([0, 0, 1, 1])
  keep = jnp.ones(4, bool)
  wins = pairwise.pairs(reward, group, keep)
  weights = pairwise.rank_weights(reward, group, keep)
  discount = 1 / np.log(2) - 1 / np.log(3)
  np.testing.assert_allclose(
    weights[0, 1], (2**0.9 - 2**0.2) * discount, rtol=1e-5
  )
  np.testing.assert_array_equal(weights > 0, wins > 0)
  u = jnp.float32([0.3, -0.1, 0.2, 0.4])
  loss, _ = pairwise.pair_loss(u, weights, beta=2.0)
  a, b = weights[0, 1], weights[3, 2]
  want = (a * np.log1p(np.exp(-0.8)) + b * np.log1p(np.exp(-0.4))) / (a + b)
  np.testing.assert_allclose(loss.mean(), want, rtol=1e-5)


def test_prdp_has_no_loss_exactly_at_the_gibbs_policy(rng):
  """A tabular policy over 6 outcomes: log p = log p_ref + r / beta + const."""
  reward = jnp.asarray(rng.normal(size=6), jnp.float32)
  one = jnp.zeros(6, jnp.int32)
  beta = 0.5
  gibbs = jax.nn.log_softmax(reward / beta)
  args = (reward, one, jnp.ones(6, bool))
  gradient, loss = pairwise.prdp_coefficients(
    gibbs, gibbs, *args, beta=beta, clip=10.0
  )
  np.testing.assert_allclose(loss, 0.0, atol=1e-5)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-5)

  def descend(logits, _):
    def total(logits):
      u = jax.nn.log_softmax(logits)
      return pairwise.prdp_coefficients(
        u, u, *args, beta=beta, clip=10.0
      )[1].mean()

    return logits - 0.5 * jax.grad(total)(logits), None

  found, _ = jax.lax.scan(descend, jnp.zeros(6), None, length=2000)
  np.testing.assert_allclose(jax.nn.log_softmax(found), gibbs, atol=1e-5)


def test_prdp_visits_add_up_to_the_gradient_of_the_square(noisy):
  settings = {"beta": 0.3, "clip": 100.0}

  def direct(weights):
    total = 0.0
    for k in range(3):
      view = look(weights, noisy)
      change = view.step(k).log_prob - view.step(k, "reference").log_prob
      total = total + change.mean((1, 2))
    wins = pairwise.pairs(noisy.reward, GROUP, noisy.keep)
    both = wins + wins.T
    gap = 0.3 * (total[:, None] - total[None])
    gap = gap - (noisy.reward[:, None] - noisy.reward[None])
    return jnp.sum(both * gap**2) / both.sum()

  view = look(MOVED, noisy)
  prepared = objectives.prepare_prdp(view, **settings)
  batch = _advantage(noisy, prepared[0, :, 0, 0])
  got = jax.grad(
    lambda w: sum(value("prdp", w, batch, k, **settings) for k in range(3)) / 3
  )(MOVED)
  np.testing.assert_allclose(got, jax.grad(direct)(MOVED), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_reward_chain_agrees_with_finite_differences(steps, smooth):
  settings = {"draws": 1, "gradient_steps": steps, "random_start": False}
  with jax.enable_x64(True):
    exact = jax.tree.map(
      lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x,
      (smooth, MOVED, jax.random.normal(jax.random.key(4), (C, C))),
    )
    batch, weights, direction = exact
    loss = jax.jit(lambda w: value("reward_chain", w, batch, **settings))
    slope = float((jax.grad(loss)(weights) * direction).sum())
    h = 1e-5
    ahead, behind = (loss(weights + s * h * direction) for s in (1, -1))
    difference = float(ahead - behind) / (2 * h)
  assert abs(slope) > 1e-3
  assert abs(difference - slope) < 1e-3 * abs(slope)


def test_the_whole_chain_is_the_sampler(smooth):
  path = smooth.trajectory
  settings = {"draws": 1, "gradient_steps": STEPS, "random_start": False}
  got = value("reward_chain", BASE, smooth, **settings)
  np.testing.assert_allclose(got, -judge(path.final).mean(), rtol=1e-5)


def test_a_random_start_cuts_the_gradient(smooth):
  settings = {"draws": 1, "gradient_steps": STEPS, "random_start": True}
  view = look(MOVED, smooth)
  gradients = []
  for seed in range(6):
    gradients.append(jax.grad(
      lambda w, seed=seed: objectives.reward_chain(
        look(w, smooth), 0, jax.random.key(seed), **settings
      )[0].mean()
    )(MOVED))
  assert len({round(float(jnp.abs(g).sum()), 6) for g in gradients}) > 1
  objectives.reward_chain(view, 0, jax.random.key(0), **settings)
  assert view.calls == STEPS


def test_memory_of_the_chain_grows_slower_than_its_steps(smooth):
  wide = 128

  def deep(weights):
    def velocity(x, t):
      hidden = x
      for _ in range(8):  # what a network keeps for its gradient
        hidden = jnp.tanh(hidden @ weights)
      return hidden * t[:, None, None, None]

    return velocity

  def peak(steps):
    path = dataclasses.replace(
      smooth.trajectory,
      x=jnp.zeros((steps + 1, 64, 8, 8, wide)),
      t=jnp.linspace(1.0, 0.0, steps + 1),
    )
    batch = dataclasses.replace(smooth, trajectory=path)

    def loss(weights):
      view = View(
        {"new": deep(weights)}, batch, transition=transition.ode,
        log_prob=None, judge=lambda x: x.mean((1, 2, 3)),
      )
      return objectives.reward_chain(
        view, 0, None, draws=1, gradient_steps=steps, random_start=False
      )[0].sum()

    lowered = jax.jit(jax.grad(loss)).lower(jnp.zeros((wide, wide)))
    return lowered.compile().memory_analysis().temp_size_in_bytes

  assert peak(16) < 2.5 * peak(4)


def test_the_predicted_reward_is_that_of_one_euler_step_to_the_end(smooth):
  path = smooth.trajectory
  loss, metrics, _ = objectives.reward_step(look(MOVED, smooth), 2, None)
  t = path.t[2]
  x0 = path.x[2] - t * field(MOVED)(path.x[2], jnp.full(M, t))
  np.testing.assert_allclose(metrics["predicted_reward"], judge(x0), rtol=1e-5)
  np.testing.assert_allclose(loss, -judge(x0), rtol=1e-5)
