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
  if set(weights) != set(signals):
    raise ValueError(
      f"weights names {sorted(weights)}, but the judges are"
      f" {sorted(signals)}; give each judge one weight."
    )
  used = {name: weight for name, weight in weights.items() if weight != 0}
  if not used:
    raise ValueError(
      f"weights is {weights}, but at least one weight must not be 0."
    )
  caps = caps or {}
  if not set(caps) <= set(signals):
    raise ValueError(
      f"caps names {sorted(caps)}, but the judges are {sorted(signals)}."
    )
  total, failed = 0.0, False
  for name, weight in used.items():
    scalar = signals[name].scalar
    if scalar is None:
      raise ValueError(
        f"weights gives {weight} to {name!r}, but that judge returns no scalar;"
        " set its weight to 0."
      )
    total = total + weight * jnp.minimum(scalar, caps.get(name, jnp.inf))
    failed = failed | (scalar == -jnp.inf)
  return jnp.where(failed, -jnp.inf, total).astype(jnp.float32)


AGGREGATORS = {"weighted_sum": weighted_sum}
