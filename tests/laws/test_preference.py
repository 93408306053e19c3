"""Every pair loss is a proper loss of the difference of two scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.rl import preference

N = 16


def arguments(name, rng):
  """Returns the outputs of the preferred image, then those of the other."""
  outputs = {"bradley_terry": 1, "gaussian_bradley_terry": 2}[name]
  return list(jnp.asarray(rng.normal(size=(2 * outputs, N)), jnp.float32))


@pytest.mark.parametrize("name", preference.PREFERENCE_LOSSES)
def test_pair_losses_fall_with_the_margin(name, rng):
  loss = jax.jit(preference.PREFERENCE_LOSSES[name])
  args = arguments(name, rng)
  got = loss(*args)
  assert got.shape == (N,) and np.all(np.asarray(got) > 0)
  assert np.all(np.asarray(loss(args[0] + 0.1, *args[1:]) < got))


@pytest.mark.parametrize("name", preference.PREFERENCE_LOSSES)
def test_exchanging_the_images_changes_the_loss_by_the_margin(name, rng):
  """softplus(-z) - softplus(z) = -z, and the mean of z is the margin."""
  loss = preference.PREFERENCE_LOSSES[name]
  args = arguments(name, rng)
  half = len(args) // 2
  exchanged = loss(*args[half:], *args[:half])
  np.testing.assert_allclose(
    loss(*args) - exchanged, args[half] - args[0], atol=1e-5
  )


def test_sharp_gaussian_scores_are_plain_scores(rng):
  score_w, score_l = arguments("bradley_terry", rng)
  log_sigma = jnp.full(N, -20.0)
  np.testing.assert_allclose(
    preference.gaussian_bradley_terry(score_w, log_sigma, score_l, log_sigma),
    preference.bradley_terry(score_w, score_l),
    atol=1e-6,
  )


@pytest.mark.parametrize(
  ("margin", "spread", "want"),
  [(0, 2**0.5, 0.9026), (1, 1, 0.40686), (3, 0.5, 0.054489), (-2, 2, 2.3563)],
)
def test_expected_loss_at_known_points(margin, spread, want):
  got = preference.gaussian_bradley_terry(
    jnp.float32(margin),
    jnp.log(jnp.float32(spread)),
    jnp.float32(0),
    jnp.float32(-20),
  )
  np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize(
  ("spread", "error"), [(1.4, 2e-7), (3, 1e-4), (5, 3e-3)]
)
def test_the_stated_quadrature_error_holds(spread, error):
  margin = np.linspace(-6, 8, 29)
  z = np.linspace(-12, 12, 20001)
  density = np.exp(-(z**2) / 2)
  want = np.logaddexp(0, -(margin[:, None] + spread * z[None])) @ density
  got = preference.gaussian_bradley_terry(
    jnp.asarray(margin, jnp.float32),
    jnp.full(29, np.log(spread), jnp.float32),
    jnp.zeros(29),
    jnp.full(29, -20.0),
  )
  rounding = 1e-6
  assert np.abs(got - want / density.sum()).max() < error + rounding
