"""What every transition and every log-prob must satisfy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow import schedules
from spatialrl.flow import transition as transitions

# A new entry is tested by adding its name and typical settings.
SETTINGS = {
  "ode": {},
  "flow_sde": {"noise_level": 0.7},
  "dance_sde": {"eta": 0.3},
  "cosine_sde": {"eta_max": 0.6, "eta_min": 0.1},
  "cps": {"noise_level": 0.8},
}
SDE = ["flow_sde", "dance_sde", "cosine_sde"]
SHAPE = (3, 4, 4, 5)
GRID = [(0.9, 0.8), (0.5, 0.3), (0.2, 0.05)]

every = pytest.mark.parametrize("name", transitions.TRANSITIONS)


def entry(name, **override):
  settings = {**SETTINGS[name], **override}
  return functools.partial(transitions.TRANSITIONS[name], **settings)


def arrays(rng, count):
  return [
    jnp.asarray(rng.normal(size=SHAPE), jnp.float32) for _ in range(count)
  ]


def scalars(*values):
  return [jnp.float32(value) for value in values]


@every
def test_shapes_and_dtypes(name, rng):
  v, x = arrays(rng, 2)
  for shape in [(), (3, 1, 1, 1)]:
    mean, std = entry(name)(v, x, jnp.full(shape, 0.6), jnp.full(shape, 0.4))
    assert (mean.shape, std.shape) == (SHAPE, shape)
    assert mean.dtype == std.dtype == jnp.float32


@every
def test_images_at_their_own_times_are_stepped_alone(name, rng):
  v, x = arrays(rng, 2)
  times = jnp.asarray(GRID + [(1.0, 0.9)], jnp.float32)[1:]
  t, t_next = jnp.split(times.reshape(3, 2, 1, 1), 2, axis=1)
  mean, std = entry(name)(v, x, t, t_next)
  for i, (now, then) in enumerate(times):
    mean_i, std_i = entry(name)(v[i : i + 1], x[i : i + 1], now, then)
    np.testing.assert_allclose(mean[i], mean_i[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std[i, 0, 0, 0], std_i, rtol=1e-6)


@every
@pytest.mark.parametrize("times", GRID)
def test_without_noise_it_is_the_euler_step(name, times, rng):
  v, x = arrays(rng, 2)
  t, t_next = scalars(*times)
  mean, std = entry(name, **dict.fromkeys(SETTINGS[name], 0.0))(v, x, t, t_next)
  np.testing.assert_allclose(mean, x + v * (t_next - t), atol=2e-6)
  assert std == 0


@every
def test_last_step_noise_is_declared(name, rng):
  v, x = arrays(rng, 2)
  _, std = entry(name)(v, x, *scalars(0.3, 0.0))
  assert (std == 0) == (name in transitions.NOISELESS_AT_ZERO)


@every
def test_time_that_does_not_decrease_gives_nan(name, rng):
  v, x, x_next = arrays(rng, 3)
  step = functools.partial(
    transitions.evaluate_step,
    transition=entry(name),
    log_prob=transitions.residual_log_prob,
  )
  assert np.isfinite(step(lambda x, t: v, x, x_next, 0.5, 0.4).mean).all()
  assert np.isnan(step(lambda x, t: v, x, x_next, 0.4, 0.4).mean).all()


@every
def test_evaluate_step_reports_what_the_transition_says(name, rng):
  v, x, x_next = arrays(rng, 3)
  seen = []

  def velocity(x, t):
    seen.append(t)
    return v.astype(jnp.bfloat16)

  transition = entry(name)
  log_prob = transitions.residual_log_prob
  t, t_next = scalars(0.6, 0.4)
  step = transitions.evaluate_step(
    velocity, x, x_next, t, t_next, transition=transition, log_prob=log_prob
  )
  rounded = v.astype(jnp.bfloat16).astype(jnp.float32)
  mean, std = transition(rounded, x, t, t_next)
  assert step.velocity.dtype == jnp.float32
  np.testing.assert_array_equal(step.velocity, rounded)
  np.testing.assert_allclose(step.mean, mean, atol=1e-6)
  np.testing.assert_allclose(step.std, std, rtol=1e-6)
  np.testing.assert_allclose(step.interval, 0.2, rtol=1e-6)
  residual = -np.square(x_next - mean).mean(-1)
  np.testing.assert_allclose(step.log_prob, residual, rtol=1e-5)
  assert seen[0].shape == (3,)
  np.testing.assert_array_equal(seen[0], t)


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde", "cps"])
@pytest.mark.parametrize("times", GRID)
def test_gaussian_log_prob_is_the_density(name, times, rng):
  v, x, eps = arrays(rng, 3)
  mean, std = entry(name)(v, x, *scalars(*times))
  x_next = mean + std * eps
  ours = transitions.gaussian_log_prob(x_next, mean, std)
  assert ours.shape == SHAPE[:3]
  z = (np.float64(x_next) - np.float64(mean)) / np.float64(std)
  density = np.exp(-0.5 * z**2) / (np.float64(std) * math.sqrt(2 * math.pi))
  np.testing.assert_allclose(ours, np.log(density).mean(-1), atol=2e-5)
  # The image value is the mean over all that is not the batch.
  image = np.log(density).reshape(3, -1).mean(1)
  np.testing.assert_allclose(np.mean(ours, (1, 2)), image, atol=1e-5)


@pytest.mark.parametrize("name", transitions.LOG_PROBS)
def test_log_probs_peak_at_the_mean_and_fall_like_a_square(name, rng):
  mean, offset = arrays(rng, 2)
  log_prob = transitions.LOG_PROBS[name]
  std = jnp.float32(0.3)
  drop = [
    log_prob(mean, mean, std) - log_prob(mean + c * offset, mean, std)
    for c in (1.0, 2.0)
  ]
  assert (np.asarray(drop[0]) > 0).all()
  np.testing.assert_allclose(drop[1], 4 * drop[0], rtol=1e-4)


def test_gaussian_and_residual_differ_by_the_step_weight(rng):
  mean, x_a, x_b = arrays(rng, 3)
  std = jnp.float32(0.3)
  gaussian, residual = [
    log_prob(x_a, mean, std) - log_prob(x_b, mean, std)
    for log_prob in transitions.LOG_PROBS.values()
  ]
  np.testing.assert_allclose(residual, 2 * std**2 * gaussian, atol=1e-5)


def mixture_velocity(x, t, share=0.7, spread=0.15):
  """Exact velocity of a mixture at +1 (share) and -1, both of that spread."""
  var = (1 - t) ** 2 * spread**2 + t**2
  log_weight, v = [], []
  for weight, mode in ((share, 1.0), (1 - share, -1.0)):
    r = x - (1 - t) * mode
    log_weight.append(math.log(weight) - 0.5 * r**2 / var)
    v.append((t - (1 - t) * spread**2) / var * r - mode)
  return (jax.nn.softmax(jnp.stack(log_weight), 0) * jnp.stack(v)).sum(0)


def sample_mixture(transition, steps, count=20_000):
  """All steps drawn from the transition; (share of +1, spread around it)."""

  def step(x, inputs):
    key, t, t_next = inputs
    v = mixture_velocity(x, t)
    mean, std = transition(v, x, t, t_next)
    return mean + std * jax.random.normal(key, x.shape), None

  keys = jax.random.split(jax.random.key(0), steps + 1)
  t = schedules.shifted(steps, shift=1.0)
  x = jax.random.normal(keys[0], (count, 1, 1, 1))
  x, _ = jax.jit(lambda *args: jax.lax.scan(step, *args))(
    x, (keys[1:], t[:-1], t[1:])
  )
  x = np.asarray(x).ravel()
  return (x > 0).mean(), x[x > 0].std()


@pytest.mark.parametrize("name", ["ode", *SDE])
def test_marginal_is_kept_at_200_steps(name):
  share, spread = sample_mixture(entry(name), 200)
  assert abs(share - 0.700) < 0.012  # 3.7 standard errors of 20k draws
  assert abs(spread - 0.150) < 0.004


def test_large_cps_noise_seeks_the_larger_mode():
  """Keeps the noise level, not the marginal: 0.74 and 0.125 at a = 0.7."""
  share, spread = sample_mixture(entry("cps", noise_level=0.7), 200)
  assert abs(share - 0.741) < 0.012
  assert abs(spread - 0.125) < 0.004


@pytest.mark.parametrize("a", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("times", [(1.0, 0.9), *GRID, (0.3, 0.0)])
def test_cps_total_noise_is_the_next_time(a, times):
  t, t_next = scalars(*times)
  # x0h = 0 and x1h = 1: the mean is the coefficient of the predicted noise.
  v = jnp.ones((1, 1, 1, 1))
  mean, std = transitions.cps(v, t * v, t, t_next, noise_level=a)
  total = jnp.sqrt(mean**2 + std**2).squeeze()
  np.testing.assert_allclose(total, t_next, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("a", [0.1, 0.7, 1.2])
@pytest.mark.parametrize(
  "times", [schedules.sd3(10), schedules.flux(6, tokens=1024)]
)
def test_flow_sde_first_std_is_the_noise_level(a, times, rng):
  v, x = arrays(rng, 2)
  mean, std = transitions.flow_sde(v, x, *scalars(*times[:2]), noise_level=a)
  np.testing.assert_allclose(std, a, rtol=1e-6)
  assert np.isfinite(mean).all()


@pytest.mark.parametrize("times", GRID)
def test_flow_sde_in_its_published_forms(times, rng):
  a = 0.7
  v, x = arrays(rng, 2)
  t, t_next = scalars(*times)
  dt = t_next - t
  s = a * jnp.sqrt(t / (1 - t))
  mean, std = transitions.flow_sde(v, x, t, t_next, noise_level=a)
  half = s**2 / (2 * t)
  paper = x + (v + half * (x + (1 - t) * v)) * dt
  code = x * (1 + half * dt) + v * (1 + half * (1 - t)) * dt
  x0h, x1h = x - t * v, x + (1 - t) * v
  data = (1 - t_next) * x0h + t_next * x1h + half * dt * x1h
  for form in (paper, code, data):
    np.testing.assert_allclose(mean, form, atol=3e-6)
  np.testing.assert_allclose(std, s * jnp.sqrt(-dt), rtol=1e-6)


@pytest.mark.parametrize("times", GRID)
def test_dance_is_flow_with_its_own_diffusion(times, rng):
  v, x = arrays(rng, 2)
  t, t_next = scalars(*times)
  g = 0.7 * math.sqrt(times[0] / (1 - times[0]))
  flow = transitions.flow_sde(v, x, t, t_next, noise_level=0.7)
  dance = transitions.dance_sde(v, x, t, t_next, eta=g)
  np.testing.assert_allclose(flow[0], dance[0], atol=2e-6)
  np.testing.assert_allclose(flow[1], dance[1], rtol=1e-6)


@pytest.mark.parametrize("times", GRID)
def test_flow_sde_kl_in_closed_form(times, rng):
  v, v_ref, x = arrays(rng, 3)
  t, t_next = scalars(*times)
  h = t - t_next
  mean, std = transitions.flow_sde(v, x, t, t_next, noise_level=0.7)
  ref, _ = transitions.flow_sde(v_ref, x, t, t_next, noise_level=0.7)
  s = 0.7 * jnp.sqrt(t / (1 - t))
  closed = h / 2 * (s * (1 - t) / (2 * t) + 1 / s) ** 2 * (v - v_ref) ** 2
  ours = (mean - ref) ** 2 / (2 * std**2)
  np.testing.assert_allclose(ours.mean(), closed.mean(), rtol=1e-5)


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde", "cps"])
def test_guarded_ratio_is_noise_times_shift(name, rng):
  """std (log r + d_mean^2 / (2 std^2)) = eps d_mean, in the mean."""
  v, dv, x, eps = arrays(rng, 4)
  t, t_next = scalars(0.5, 0.3)
  old, std = entry(name)(v, x, t, t_next)
  new, _ = entry(name)(v + 0.1 * dv, x, t, t_next)
  x_next = old + std * eps
  log_r = transitions.gaussian_log_prob(x_next, new, std)
  log_r = log_r - transitions.gaussian_log_prob(x_next, old, std)
  shift = new - old
  ours = std * (log_r + (shift**2).mean(-1) / (2 * std**2))
  np.testing.assert_allclose(ours, (eps * shift).mean(-1), atol=1e-6)


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde", "cps"])
def test_negative_noise_is_refused(name, rng):
  v, x = arrays(rng, 2)
  (field,) = SETTINGS[name]
  with pytest.raises(ValueError, match=rf"{field} is -0.1, .* \[0, "):
    entry(name, **{field: -0.1})(v, x, *scalars(0.5, 0.3))


def test_cps_noise_above_one_is_refused(rng):
  v, x = arrays(rng, 2)
  with pytest.raises(ValueError, match=r"noise_level is 1.5, .* \[0, 1\]"):
    transitions.cps(v, x, *scalars(0.5, 0.3), noise_level=1.5)
