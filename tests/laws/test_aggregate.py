"""Every aggregate gives one number per image and passes failures on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl import records
from spatialrl.rewards import aggregate

B = 6
WEIGHTS = {"spatial": 0.75, "quality": -0.5}


def signals(rng):
  return {
    name: records.Signals(scalar=jnp.asarray(rng.normal(size=B), jnp.float32))
    for name in WEIGHTS
  }


def run(name, values, weights=WEIGHTS):
  return jax.jit(
    functools.partial(aggregate.AGGREGATORS[name], weights=weights)
  )(values)


@pytest.mark.parametrize("name", aggregate.AGGREGATORS)
def test_aggregates_commute_with_permuting_images(name, rng):
  values, order = signals(rng), rng.permutation(B)
  moved = jax.tree.map(lambda a: a[order], values)
  got = run(name, values)
  assert got.shape == (B,) and got.dtype == jnp.float32
  np.testing.assert_array_equal(run(name, moved), got[order])


@pytest.mark.parametrize("name", aggregate.AGGREGATORS)
@pytest.mark.parametrize("judge", WEIGHTS)
def test_a_failed_signal_fails_its_image_only(name, judge, rng):
  values = signals(rng)
  want = np.array(run(name, values))
  assert np.isfinite(want).all()
  want[2] = -np.inf
  values[judge] = records.Signals(
    scalar=values[judge].scalar.at[2].set(-jnp.inf)
  )
  np.testing.assert_array_equal(run(name, values), want)


@pytest.mark.parametrize("name", aggregate.AGGREGATORS)
def test_a_nan_signal_is_not_hidden(name, rng):
  values = signals(rng)
  values["quality"] = records.Signals(
    scalar=values["quality"].scalar.at[1].set(jnp.nan)
  )
  got = np.isnan(run(name, values))
  np.testing.assert_array_equal(np.flatnonzero(got), [1])


def test_weighted_sum_adds(rng):
  values = signals(rng)
  want = 0.75 * values["spatial"].scalar - 0.5 * values["quality"].scalar
  np.testing.assert_allclose(run("weighted_sum", values), want, rtol=1e-6)


def test_what_is_above_a_cap_counts_as_the_cap(rng):
  values = signals(rng)
  got = aggregate.weighted_sum(values, weights=WEIGHTS, caps={"spatial": 0.1})
  spatial = np.minimum(values["spatial"].scalar, 0.1)
  assert (spatial == np.float32(0.1)).any() and (spatial < 0.1).any()
  want = 0.75 * spatial - 0.5 * values["quality"].scalar
  np.testing.assert_allclose(got, want, rtol=1e-6)
  with pytest.raises(ValueError, match="caps names .'colour'., but the judges"):
    aggregate.weighted_sum(values, weights=WEIGHTS, caps={"colour": 1.0})


def test_a_signal_of_weight_zero_is_only_reported(rng):
  values = signals(rng)
  values["quality"] = records.Signals(scalar=jnp.full(B, -jnp.inf))
  got = run("weighted_sum", values, {"spatial": 2.0, "quality": 0.0})
  np.testing.assert_allclose(got, 2 * values["spatial"].scalar, rtol=1e-6)


@pytest.mark.parametrize(
  "weights", [{"spatial": 1.0}, WEIGHTS | {"colour": 1.0}]
)
def test_names_must_match(weights, rng):
  with pytest.raises(ValueError, match="weights names .* but the judges are"):
    aggregate.weighted_sum(signals(rng), weights=weights)


def test_some_weight_must_count(rng):
  with pytest.raises(ValueError, match="at least one weight"):
    aggregate.weighted_sum(signals(rng), weights=dict.fromkeys(WEIGHTS, 0.0))


def test_a_weighted_judge_must_return_a_scalar(rng):
  values = signals(rng) | {"quality": records.Signals()}
  with pytest.raises(ValueError, match="'quality'.*no scalar"):
    aggregate.weighted_sum(values, weights=WEIGHTS)
