"""Policy losses with their gradients, and pair losses, against the numbers of
the public implementations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow import transition
from spatialrl.rl import anchors, forward, ppo, preference

ROWS = (0, 1, 2)  # of axis 0 of the grpo_loss files: steps 0, 3 and 8


# Policy losses. The files keep channels first; batch 8, 8x8 positions.


def inputs(golden, row):
  """Returns one step's arrays by name, channels last, and its two times."""
  data = golden("grpo_loss/flow_grpo.npz")
  names = ("x", "v", "v_old", "v_ref", "prev_sample", "old_mean", "eps")
  case = {name: jnp.moveaxis(data[name][row], 1, -1) for name in names}
  step = data["step_index"][row]
  case["t"] = jnp.asarray(data["sigmas"][step])
  case["t_next"] = jnp.asarray(data["sigmas"][step + 1])
  case["advantage"] = jnp.asarray(data["advantages"][:, step])
  sampler = functools.partial(
    transition.flow_sde, noise_level=float(data["noise_level"])
  )
  case["evaluate"] = lambda v: transition.evaluate_step(
    lambda x, t: v,
    case["x"],
    case["prev_sample"],
    case["t"],
    case["t_next"],
    transition=sampler,
    log_prob=transition.gaussian_log_prob,
  )
  case["old_log_prob"] = transition.gaussian_log_prob(
    case["prev_sample"], case["old_mean"], case["evaluate"](case["v"]).std
  )
  case["weight"] = jnp.ones_like(case["old_log_prob"])
  return case


def run(case, objective, *, anchor=anchors.none, beta=0.0, old_log_prob=None):
  """Returns the batch loss, its parts, and the gradient in the file's axes.

  `old_log_prob(new)` replaces the stored log-probs when given.
  """

  def loss_fn(v):
    new = case["evaluate"](v)
    old = case["old_log_prob"] if old_log_prob is None else old_log_prob(new)
    loss, metrics = objective(
      new, case["old_mean"], old, case["advantage"], case["weight"]
    )
    assert loss.shape == case["advantage"].shape
    held = jnp.mean(anchor(new, case["evaluate"](case["v_ref"])))
    policy = jnp.mean(loss)
    return policy + beta * held, (policy, held, metrics)

  (loss, parts), grad = jax.value_and_grad(loss_fn, has_aux=True)(case["v"])
  return loss, *parts, jnp.moveaxis(grad, -1, 1)


def assert_gradient(got, want, rel):
  np.testing.assert_allclose(got, want, rtol=0, atol=rel * np.abs(want).max())


def assert_clip_shares(metrics, data, prefix, row):
  high, low = metrics["clip_high"], metrics["clip_low"]
  for got, name in (
    (high + low, "clipfrac"),
    (high, "clipfrac_gt_one"),
    (low, "clipfrac_lt_one"),
  ):
    np.testing.assert_array_equal(jnp.mean(got), data[f"{prefix}_{name}"][row])


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
  ("prefix", "beta"), [("beta0", 0.0), ("beta0p04", 0.04), ("beta4", 4.0)]
)
def test_ppo_is_flow_grpo(golden, row, prefix, beta):
  data = golden("grpo_loss/flow_grpo.npz")
  case = inputs(golden, row)
  objective = functools.partial(ppo.ppo, clip_range=1e-4, adv_clip=5.0)
  loss, policy, held, metrics, grad = run(
    case, objective, anchor=anchors.kl_published, beta=beta
  )
  np.testing.assert_allclose(
    jnp.mean(case["old_log_prob"], (1, 2)), data["old_log_prob"][row], atol=2e-6
  )
  np.testing.assert_allclose(metrics["ratio"], data["ratio"][row], atol=2e-6)
  np.testing.assert_allclose(
    policy, data[f"{prefix}_policy_loss"][row], rtol=1e-5
  )
  np.testing.assert_allclose(loss, data[f"{prefix}_loss"][row], rtol=1e-5)
  assert_gradient(grad, data[f"{prefix}_grad_v"][row], 1e-5)
  assert_clip_shares(metrics, data, prefix, row)
  np.testing.assert_allclose(
    jnp.mean(metrics["approx_kl"]),
    data[f"{prefix}_approx_kl"][row],
    rtol=5e-3,  # the square of a difference of float32 log-probs
  )
  if beta:
    np.testing.assert_allclose(held, data[f"{prefix}_kl_loss"][row], rtol=1e-5)


def guard(clip_range, divide_by_interval=True):
  return functools.partial(
    ppo.ppo_guard,
    clip_range=float(clip_range),
    adv_clip=5.0,
    divide_by_interval=divide_by_interval,
  )


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("clip", ["tight", "wide"])
def test_guard_is_verl_omni(golden, row, clip):
  data = golden("grpo_loss/guard_verl_omni.npz")
  loss, _, _, metrics, grad = run(
    inputs(golden, row), guard(data[f"clip_{clip}"])
  )
  np.testing.assert_allclose(metrics["ratio"], data["ratio"][row], atol=3e-6)
  np.testing.assert_allclose(loss, data[f"{clip}_loss"][row], rtol=1e-4)
  assert_gradient(grad, data[f"{clip}_grad_v"][row], 1e-4)
  for got, name in (
    (metrics["clip_high"] + metrics["clip_low"], "pg_clipfrac"),
    (metrics["clip_high"], "pg_clipfrac_higher"),
    (metrics["clip_low"], "pg_clipfrac_lower"),
  ):
    np.testing.assert_array_equal(jnp.mean(got), data[f"{clip}_{name}"][row])


def plain_shift(new, reference):
  """Mean squared shift of the means, without a variance."""
  return anchors.kl(new, reference) * 2 * jnp.square(new.std)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
  ("prefix", "anchor"),
  [
    ("nokl", anchors.none),
    ("klv", anchors.velocity_mse),
    ("klx", plain_shift),
  ],
)
def test_guard_is_flow_factory(golden, row, prefix, anchor):
  data = golden("grpo_loss/guard_flow_factory.npz")
  loss, policy, held, metrics, grad = run(
    inputs(golden, row),
    guard(data["clip_range"], divide_by_interval=False),
    anchor=anchor,
    beta=0.04,
  )
  np.testing.assert_allclose(metrics["ratio"], data["ratio"][row], atol=3e-6)
  # The file's klv_policy_loss and klx_policy_loss contain the penalty already.
  np.testing.assert_allclose(policy, data["nokl_policy_loss"][row], rtol=1e-4)
  np.testing.assert_allclose(loss, data[f"{prefix}_loss"][row], rtol=1e-4)
  assert_gradient(grad, data[f"{prefix}_grad_v"][row], 1e-4)
  for side in ("high", "low"):
    np.testing.assert_array_equal(
      jnp.mean(metrics[f"clip_{side}"]), data[f"clip_frac_{side}"][row]
    )
  if prefix != "nokl":
    np.testing.assert_allclose(held, data[f"{prefix}_kl_div"][row], rtol=1e-4)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("clip", ["tight", "wide"])
@pytest.mark.parametrize(("prefix", "beta"), [("beta0", 0), ("beta0p04", 0.04)])
def test_guard_relates_to_flow_grpo(golden, row, clip, prefix, beta):
  """The file's correction is M = mean_i m_i of the batch, ours m_i per image.

  With m_i = mean(shift_i^2), ours is c (log r + m_i / 2c^2). Moving the old
  log-prob up by (m_i - M) / 2c^2, gradient included, turns one into the other;
  for a batch of one image nothing is moved.
  """
  data = golden("grpo_loss/guard_flow_grpo.npz")
  case = inputs(golden, row)

  def old_log_prob(new):
    per_image = jnp.mean(jnp.square(new.mean - case["old_mean"]), (1, 2, 3))
    excess = (per_image - jnp.mean(per_image)) / (2 * jnp.square(new.std))
    return case["old_log_prob"] + excess[:, None, None]

  loss, policy, held, metrics, grad = run(
    case,
    guard(data[f"clip_{clip}"]),
    anchor=anchors.kl_published,
    beta=beta,
    old_log_prob=old_log_prob,
  )
  name = f"{clip}_{prefix}"
  np.testing.assert_allclose(metrics["ratio"], data["ratio"][row], atol=2e-6)
  np.testing.assert_allclose(
    policy, data[f"{name}_policy_loss"][row], rtol=1e-4
  )
  np.testing.assert_allclose(loss, data[f"{name}_loss"][row], rtol=1e-4)
  assert_gradient(grad, data[f"{name}_grad_v"][row], 1e-4)
  assert_clip_shares(metrics, data, name, row)
  if beta:
    np.testing.assert_allclose(held, data[f"{name}_kl_loss"][row], rtol=1e-4)


# Pair losses.


def test_bradley_terry_is_hpsv3(golden):
  data = golden("hps_bt/bradley_terry.npz")
  score_w, score_l = data["score_w"][:, 0], data["score_l"][:, 0]
  loss, grads = jax.value_and_grad(
    lambda *scores: jnp.mean(preference.bradley_terry(*scores)), argnums=(0, 1)
  )(score_w, score_l)
  np.testing.assert_allclose(loss, data["bt_loss"], rtol=0, atol=1e-6)
  np.testing.assert_allclose(grads[0], data["bt_grad_w"][:, 0], atol=1e-6)
  np.testing.assert_allclose(grads[1], data["bt_grad_l"][:, 0], atol=1e-6)


def test_gaussian_bradley_terry_is_hpsv3(golden):
  data = golden("hps_bt/uncertainty.npz")
  names = ("mu_w", "log_sigma_w", "mu_l", "log_sigma_l")
  got = preference.gaussian_bradley_terry(*(data[name] for name in names))
  # 20 nodes are off by 5.7e-5 at the widest pair of this file (spread 3.4).
  np.testing.assert_allclose(got, data["loss_quadrature"], rtol=0, atol=6e-5)
  spread = np.hypot(np.exp(data["log_sigma_w"]), np.exp(data["log_sigma_l"]))
  narrow = spread < 2
  assert narrow.sum() > 10
  np.testing.assert_allclose(
    np.asarray(got)[narrow], data["loss_quadrature"][narrow], rtol=0, atol=2e-6
  )
  sampling = 5 * data["loss_mc_se"] + 6e-5
  assert np.all(np.abs(got - data["loss_mc"]) < sampling)


# DiffusionNFT.


@pytest.mark.parametrize(("mix", "prefix"), [(1.0, "beta1"), (0.1, "beta0p1")])
def test_diffusion_nft(golden, mix, prefix):
  data = golden("nft_loss/diffusion_nft.npz")
  case = {
    name: jnp.moveaxis(jnp.asarray(data[name]), 1, -1)
    for name in ("x0", "x_t", "v_old", "v", "v_ref")
  }
  t, advantage = data["t"], data["advantage"]

  def loss(v):
    rows = forward.nft(
      v, case["v_old"], case["x0"], case["x_t"], t, advantage,
      mix=mix, adv_clip=5.0,
    )
    held = jnp.mean(jnp.square(v - case["v_ref"]))
    return jnp.mean(rows) + 1e-4 * held, rows

  (total, rows), grad = jax.value_and_grad(loss, has_aux=True)(case["v"])
  share, good, bad = (
    data[n] for n in ("r", f"{prefix}_positive_loss", f"{prefix}_negative_loss")
  )
  want = 5 * (share * good + (1 - share) * bad) / mix
  # The last prediction is exact: its residual is rounding over a floor.
  np.testing.assert_allclose(rows[:-1], want[:-1], rtol=1e-5)
  np.testing.assert_allclose(rows[-1], want[-1], atol=1e-4)
  np.testing.assert_allclose(total, data[f"{prefix}_loss"], rtol=1e-5)
  grad = np.moveaxis(np.asarray(grad), -1, 1)[:-1]
  assert_gradient(grad, data[f"{prefix}_grad_v"][:-1], 1e-5)
