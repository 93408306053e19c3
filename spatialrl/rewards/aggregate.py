"""Many signals to one reward per image; judges live in `judges.py`."""

import jax.numpy as jnp


def weighted_sum(signals, *, weights, caps=None):
  r"""Adds the scalar signals, $R_i = \sum_j w_j \min(s_{j,i}, c_j)$.

  A signal of weight 0 is only reported, so its failures do not count.

  Args:
    signals: dict of records.Signals by judge name.
    weights: dict of float by judge name, the same names.
    caps: dict of float by judge name: the score c_j above which more counts
      nothing, since what raises it further may not be what was meant (ours).

  Returns:
    f32[B]; -inf where any signal of non-zero weight failed (is -inf).
  """
  caps = caps or {}
  scalars, failed = _scalars(signals, weights)
  if not set(caps) <= set(signals):
    raise ValueError(
      f"caps names {sorted(caps)}, but the judges are {sorted(signals)}."
    )
  total = sum(
    weights[name] * jnp.minimum(scalar, caps.get(name, jnp.inf))
    for name, scalar in scalars.items()
  )
  return _fail(total, failed)


def log_tame(signals, *, weights):
  r"""Adds the signals, those of large relative spread through a logarithm.

  With $h_j = \mathrm{std}(s_j) / \mathrm{mean}(s_j)$ over the batch,
  $R_i = \sum_j w_j s'_{j,i}$ where $s' = \log(1 + s)$ if $h_j$ exceeds the mean
  of all $h$, else $s' = s$ (PaCo-RL, arXiv:2512.04784). Meant for non-negative
  signals. The public code then takes R itself as the advantage; here the
  advantage slot follows, as the paper says.

  Args:
    signals: dict of records.Signals by judge name.
    weights: dict of float by judge name, the same names.

  Returns:
    f32[B]; -inf where any signal of non-zero weight failed.
  """
  scalars, failed = _scalars(signals, weights)
  spreads = {n: _relative_spread(s, failed) for n, s in scalars.items()}
  limit = sum(spreads.values()) / len(spreads)
  total = sum(
    weights[n] * jnp.where(spreads[n] > limit, jnp.log1p(s), s)
    for n, s in scalars.items()
  )
  return _fail(total, failed)


def win_rate(signals, *, weights):
  r"""Mean share of wins of an image over the others of its group.

  $R_i = \sum_j w_j \frac{1}{G-1} \sum_{k \ne i} p_{j,ik}$ with p 1 for a win,
  1/2 for a tie, 0 for a defeat (Pref-GRPO, arXiv:2508.20751). The public code
  rounds the share to three decimals, which this does not.

  Args:
    signals: dict of records.Signals by judge name, each with `pair`
      f32[P, G, G]; groups are contiguous in the batch. NaN off the diagonal
      marks a comparison that failed and counts as a tie.
    weights: dict of float by judge name, the same names.

  Returns:
    f32[P * G].
  """
  _check_weights(signals, weights)
  total = 0.0
  for name, weight in weights.items():
    pair = signals[name].pair
    if weight and pair is None:
      raise ValueError(
        f"weights gives {weight} to {name!r}, but that judge compares no pairs;"
        " set its weight to 0 or choose another aggregate."
      )
    if weight:
      size = pair.shape[-1]
      wins = jnp.where(jnp.isnan(pair), 0.5, pair)
      wins = jnp.where(jnp.eye(size, dtype=bool), 0.0, wins)
      total = total + weight * wins.sum(-1).reshape(-1) / (size - 1)
  return jnp.asarray(total, jnp.float32)


def hierarchical(signals, *, weights):
  r"""Adds signals of several levels, each in its own standard deviations.

  $R_i = \sum_j w_j (s_{j,i} - \mathrm{mean}_B s_j) / \mathrm{std}_B s_j$.
  HiCoGen (arXiv:2511.19965) adds global, subject and relation scores with
  hand-set weights; the common unit is ours, since our heads do not share one.

  Args:
    signals: dict of records.Signals by judge name.
    weights: dict of float by judge name, the same names.

  Returns:
    f32[B]; -inf where any signal of non-zero weight failed.
  """
  scalars, failed = _scalars(signals, weights)
  total = 0.0
  for name, scalar in scalars.items():
    mean, std = _moments(scalar, failed)
    total = total + weights[name] * (scalar - mean) / (std + 1e-6)
  return _fail(total, failed)


def vector(signals, *, weights):
  """Keeps the signals apart, for selectors that compare several.

  Args:
    signals: dict of records.Signals by judge name.
    weights: dict of float by judge name, the same names; their factors.

  Returns:
    f32[B, J], one column a judge of non-zero weight, in the order of their
    names; a row is -inf throughout where any of them failed.
  """
  scalars, failed = _scalars(signals, weights)
  columns = [weights[name] * scalars[name] for name in sorted(scalars)]
  return _fail(jnp.stack(columns, -1), failed[:, None])


def _check_weights(signals, weights):
  if set(weights) != set(signals):
    raise ValueError(
      f"weights names {sorted(weights)}, but the judges are"
      f" {sorted(signals)}; give each judge one weight."
    )
  if not any(weights.values()):
    raise ValueError(
      f"weights is {dict(weights)}, but at least one weight must not be 0."
    )


def _scalars(signals, weights):
  """Scalars of the judges that count, f32[B] each, and bool[B] of failures."""
  _check_weights(signals, weights)
  scalars, failed = {}, False
  for name, weight in weights.items():
    if not weight:
      continue
    scalars[name] = signals[name].scalar
    if scalars[name] is None:
      raise ValueError(
        f"weights gives {weight} to {name!r}, but that judge returns no scalar;"
        " set its weight to 0."
      )
    failed = failed | (scalars[name] == -jnp.inf)
  return scalars, failed


def _fail(total, failed):
  return jnp.where(failed, -jnp.inf, total).astype(jnp.float32)


def _moments(scalar, failed):
  """Mean and population spread over the images that did not fail."""
  count = jnp.maximum((~failed).sum(), 1)
  mean = jnp.where(failed, 0.0, scalar).sum() / count
  square = jnp.where(failed, 0.0, jnp.square(scalar - mean)).sum() / count
  return mean, jnp.sqrt(square)


def _relative_spread(scalar, failed):
  """Spread over mean; 0 for a signal of zeros, which has neither."""
  mean, std = _moments(scalar, failed)
  return jnp.where(std > 0, std / jnp.where(mean == 0, 1.0, mean), 0.0)


AGGREGATORS = {
  "weighted_sum": weighted_sum,
  "log_tame": log_tame,
  "win_rate": win_rate,
  "hierarchical": hierarchical,
  "vector": vector,
}
