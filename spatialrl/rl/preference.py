"""Losses of reward models on pairs: the first image is the preferred one."""

import jax
import jax.numpy as jnp
import numpy as np

# E[f(n)] for n ~ N(0, 1) is about sum(_WEIGHTS * f(_NODES)).
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
_WEIGHTS = _WEIGHTS / np.sum(_WEIGHTS)


def bradley_terry(score_w, score_l):
  r"""Negative log-likelihood that the first image wins.

  $-\log\sigma(s_w - s_l)$

  Args:
    score_w: f32[N], score of the preferred image.
    score_l: f32[N], score of the other.

  Returns:
    f32[N].
  """
  return jax.nn.softplus(score_l - score_w)


def gaussian_bradley_terry(mu_w, log_sigma_w, mu_l, log_sigma_l):
  r"""Expected Bradley-Terry loss of two Gaussian scores.

  $E[\mathrm{softplus}(-z)],\; z \sim N(\mu_w - \mu_l,
    \sigma_w^2 + \sigma_l^2)$

  HPSv3 averages 1000 draws; here 20 Gauss-Hermite nodes. Their error grows
  with the spread of z: 1e-8 at 1.4, 8e-5 at 3, 2.5e-3 at 5.

  Args:
    mu_w: f32[N], mean score of the preferred image.
    log_sigma_w: f32[N], log of its standard deviation.
    mu_l: f32[N], mean score of the other.
    log_sigma_l: f32[N], log of its standard deviation.

  Returns:
    f32[N].
  """
  spread = jnp.exp(0.5 * jnp.logaddexp(2.0 * log_sigma_w, 2.0 * log_sigma_l))
  along = (1,) * mu_w.ndim + (-1,)
  nodes = jnp.asarray(_NODES, jnp.float32).reshape(along)
  weights = jnp.asarray(_WEIGHTS, jnp.float32).reshape(along)
  z = (mu_w - mu_l)[..., None] + spread[..., None] * nodes
  return jnp.sum(weights * jax.nn.softplus(-z), axis=-1)


PREFERENCE_LOSSES = {
  "bradley_terry": bradley_terry,
  "gaussian_bradley_terry": gaussian_bradley_terry,
}
