"""Schedules and transitions against the numbers of the public code.

Golden latents are channel-first [..., B, C, h, w]; ours are channel-last.
Tolerances are those stated with the golden data.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow import schedules, transition

FLOW = ["flow_sde_step/flux_6steps.npz", "flow_sde_step/sd35_10steps.npz"]
CPS = ["cps_step/flux_6steps.npz", "cps_step/sd35_10steps.npz"]
DANCE = "dance_step/flux_16steps.npz"


def last(x):
  """[..., C, h, w] -> [..., h, w, C]."""
  return np.moveaxis(x, -3, -1)


def first(x):
  """[..., h, w, C] -> [..., C, h, w]."""
  return np.moveaxis(np.asarray(x), -1, -3)


def step(entry, data, k, v="v"):
  """Mean and std of golden step k, scalar times."""
  t, t_next = jnp.asarray(data["sigmas"][k : k + 2])
  return entry(last(data[v][k]), last(data["x"][k]), t, t_next)


def image_value(log_prob):
  return np.asarray(log_prob).mean((1, 2))


@pytest.mark.parametrize("steps", [10, 28, 40])
def test_sd3_schedule(golden, steps):
  data = golden("schedules/flow_match_euler_sigmas.npz")
  ours = schedules.sd3(steps)
  assert ours.dtype == np.float32
  np.testing.assert_allclose(ours, data[f"sd3_{steps}_sigmas"], atol=1e-6)


@pytest.mark.parametrize("steps", [6, 28])
@pytest.mark.parametrize("side", [512, 1024])
def test_flux_schedule(golden, steps, side):
  data = golden("schedules/flow_match_euler_sigmas.npz")
  ours = schedules.flux(steps, tokens=(side // 16) ** 2)
  assert ours.dtype == np.float32
  theirs = data[f"flux_{side}px_{steps}_sigmas"]
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_dance_schedule(golden):
  theirs = golden(DANCE)["sigmas"]
  ours = schedules.shifted(16, shift=3.0)
  assert ours.dtype == np.float32
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", FLOW)
def test_flow_sde_step(golden, name):
  data = golden(name)
  for a, level in enumerate(data["noise_levels"]):
    entry = functools.partial(transition.flow_sde, noise_level=float(level))
    for k in range(len(data["timesteps"])):
      h = data["sigmas"][k] - data["sigmas"][k + 1]
      for v, suffix in (("v", ""), ("v_new", "_new")):
        mean, std = step(entry, data, k, v)
        theirs = data["mean" + suffix][a, k]
        np.testing.assert_allclose(first(mean), theirs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(std, data["step_std"][a, k], rtol=1e-6)
        np.testing.assert_allclose(std / np.sqrt(h), data["g"][a, k], rtol=1e-6)
        if level == 0:
          continue  # no density without noise: NaN in the public code
        x_next = last(data["prev_sample"][a, k])
        ours = transition.gaussian_log_prob(x_next, mean, std)
        theirs = data["log_prob" + suffix][a, k]
        np.testing.assert_allclose(image_value(ours), theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", FLOW)
def test_flow_sde_step_at_a_time_of_its_own_for_each_image(golden, name):
  data = golden(name)
  level = float(data["noise_levels"][1])
  index = data["mixed_index"]
  shape = (-1, 1, 1, 1)
  mean, std = transition.flow_sde(
    last(data["v"][0]),
    last(data["x"][0]),
    jnp.asarray(data["sigmas"][index]).reshape(shape),
    jnp.asarray(data["sigmas"][index + 1]).reshape(shape),
    noise_level=level,
  )
  x_next = last(data["prev_sample"][1, 0])
  ours = transition.gaussian_log_prob(x_next, mean, std)
  np.testing.assert_allclose(first(mean), data["mixed_mean"], rtol=0, atol=1e-5)
  # One value is -7614 (a state drawn by another step, under a small std). Two
  # float32 numbers there are 5e-4 apart, more than the stated tolerance of
  # 2e-4, so a relative part of about 2.5 of those spacings is added.
  theirs = data["mixed_log_prob"]
  np.testing.assert_allclose(image_value(ours), theirs, rtol=1.5e-7, atol=2e-4)


@pytest.mark.parametrize("name", CPS)
def test_cps_step(golden, name):
  data = golden(name)
  level = float(data["noise_levels"][0])
  entry = functools.partial(transition.cps, noise_level=level)
  for k in range(len(data["timesteps"])):
    x_next = last(data["prev_sample"][0, k])
    mean, std = step(entry, data, k)
    np.testing.assert_allclose(
      first(mean), data["mean"][0, k], rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(std, data["std"][0, k], rtol=0, atol=1e-6)
    for v, suffix in (("v", ""), ("v_new", "_new")):
      mean, std = step(entry, data, k, v)
      ours = transition.residual_log_prob(x_next, mean, std)
      theirs = data["log_prob" + suffix][0, k]
      np.testing.assert_allclose(
        image_value(ours), theirs, rtol=1e-5, atol=1e-6
      )


def test_dance_step(golden):
  data = golden(DANCE)
  entry = functools.partial(transition.dance_sde, eta=float(data["eta"]))
  for k in range(len(data["std"])):
    x_next = last(data["prev_sample"][k])
    mean, std = step(entry, data, k)
    np.testing.assert_allclose(first(mean), data["mean"][k], rtol=0, atol=2e-5)
    np.testing.assert_allclose(std, data["std"][k], rtol=1e-6)
    for v, suffix in (("v", ""), ("v_new", "_new")):
      mean, std = step(entry, data, k, v)
      ours = transition.gaussian_log_prob(x_next, mean, std)
      theirs = data["log_prob" + suffix][k]
      np.testing.assert_allclose(image_value(ours), theirs, rtol=0, atol=1e-4)


def test_euler_step_and_the_image_it_ends_on(golden):
  data = golden(DANCE)
  for k in range(len(data["std"])):
    mean, std = step(transition.ode, data, k)
    np.testing.assert_allclose(
      first(mean), data["mean_ode"][k], rtol=0, atol=2e-5
    )
    assert std == 0
    # One Euler step to t = 0 is the data prediction that DanceGRPO decodes.
    to_zero, _ = transition.ode(
      last(data["v"][k]),
      last(data["x"][k]),
      jnp.asarray(data["sigmas"][k]),
      jnp.zeros(()),
    )
    np.testing.assert_allclose(
      first(to_zero), data["pred_x0"][k], rtol=0, atol=1e-6
    )
