r"""Preference losses over the pairs of a group, in one form.

  $L = \sum_{(i,j)} W_{ij}\, \psi(u_i - u_j)$ over pairs with r_i > r_j

with a statistic u per image (a forward or a path log-ratio to the reference), a
link psi and a pair weight W.
"""

import jax
import jax.numpy as jnp


def pairs(reward, group, keep):
  """Which image beats which: f32[M, M], 1 where i is better than j.

  Args:
    reward: f32[M].
    group: i32[M]; only images of one group are compared.
    keep: bool[M].

  Returns:
    f32[M, M].
  """
  same = group[:, None] == group[None]
  both = keep[:, None] & keep[None]
  better = reward[:, None] > reward[None]
  return (same & both & better).astype(jnp.float32)


def rank_weights(reward, group, keep):
  r"""RankDPO's weights, $|2^{y_i} - 2^{y_j}|\,|1/\log(1+k_i) - 1/\log(1+k_j)|$.

  Gain and discount of a ranking metric (arXiv:2410.18013; not checked against
  the paper, whose full text was not available to us): y is the reward, meant in
  [0, 1], k the rank in the group, 1 the best. With two images the weight is a
  factor per pair.

  Args:
    reward: f32[M].
    group: i32[M].
    keep: bool[M].

  Returns:
    f32[M, M], 0 where i does not beat j.
  """
  wins = pairs(reward, group, keep)
  rank = 1.0 + wins.sum(0)
  gain = jnp.exp2(reward)
  discount = 1.0 / jnp.log1p(rank)
  gap = jnp.abs(gain[:, None] - gain[None])
  return wins * gap * jnp.abs(discount[:, None] - discount[None])


def logistic(difference):
  """-log sigmoid: the link of DPO."""
  return jax.nn.softplus(-difference)


def pair_loss(statistic, weights, rows, *, beta):
  r"""$-\log\sigma(\beta (u_i - u_j))$ over weighted pairs, booked on winners.

  Args:
    statistic: u, f32[M].
    weights: f32[M, M].
    rows: images that count, of which the caller takes the mean.
    beta: strength of the anchor that is inside the pair.

  Returns:
    (loss f32[M], whose sum over `rows` is the weighted mean over pairs;
    accuracy f32[], the share of pairs that the statistic orders rightly).
  """
  difference = statistic[:, None] - statistic[None]
  total = jnp.maximum(weights.sum(), 1e-12)
  loss = (weights * logistic(beta * difference)).sum(1) / total
  accuracy = (weights * (difference > 0)).sum() / total
  return loss * rows, accuracy


def prdp_coefficients(statistic, old, reward, group, keep, *, beta, clip):
  r"""PRDP: how far each image's log-ratio is from its rewards, per pair.

  $L = \max(D^2, \tilde D^2)$ with
  $D = \beta (u_i - u_j) - (r_i - r_j)$, and $\tilde D$ the same with each u
  clipped to within `clip` of its value at the rollout (arXiv:2402.08714; that
  the larger of the two losses counts was not checked against the paper). Zero
  loss is the optimum of KL-regularised reward, the Gibbs policy.

  Args:
    statistic: u f32[M], log-ratio of the whole path to the reference.
    old: f32[M], the same for the policy that drew the images.
    reward: f32[M].
    group: i32[M].
    keep: bool[M].
    beta: weight of the KL.
    clip: largest change of u.

  Returns:
    (dL/du f32[M], loss f32[M]); both sum to the mean over pairs times the
    images that are kept, of which the update takes the mean.
  """
  reward = jnp.where(keep, reward, 0.0)  # -inf of a failed score times 0 is NaN
  same = pairs(reward, group, keep)
  same = same + same.T

  def loss(u):
    def squares(u):
      gap = beta * (u[:, None] - u[None]) - (reward[:, None] - reward[None])
      return jnp.square(gap)

    held = old + jnp.clip(u - old, -clip, clip)
    worst = jnp.maximum(squares(u), squares(held))
    total = jnp.maximum(same.sum(), 1.0)
    rows = (same * worst).sum(1) / total * keep.sum()
    return rows.sum(), rows

  gradient, rows = jax.grad(loss, has_aux=True)(statistic)
  return gradient, rows
