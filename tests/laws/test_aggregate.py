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


# An image's number depends on its own signals alone.
ALONE = ["weighted_sum"]
# These look at the batch; `win_rate` looks at pairs and `vector` keeps columns.
SCALAR = ALONE + ["log_tame", "hierarchical"]


def signals(rng):
  return {
    name: records.Signals(scalar=jnp.asarray(rng.random(B), jnp.float32))
    for name in WEIGHTS
  }


def run(name, values, weights=WEIGHTS):
  return jax.jit(
    functools.partial(aggregate.AGGREGATORS[name], weights=weights)
  )(values)


@pytest.mark.parametrize("name", SCALAR)
def test_aggregates_commute_with_permuting_images(name, rng):
  values, order = signals(rng), rng.permutation(B)
  moved = jax.tree.map(lambda a: a[order], values)
  got = run(name, values)
  assert got.shape == (B,) and got.dtype == jnp.float32
  np.testing.assert_allclose(run(name, moved), got[order], rtol=1e-5)


@pytest.mark.parametrize("name", SCALAR)
def test_a_failure_is_not_a_number_in_the_batch(name, rng):
  values = signals(rng)
  values["quality"] = records.Signals(
    scalar=values["quality"].scalar.at[2].set(-jnp.inf)
  )
  got = np.asarray(run(name, values))
  np.testing.assert_array_equal(np.flatnonzero(got == -np.inf), [2])
  there = np.arange(B) != 2
  without = jax.tree.map(lambda a: a[there], values)
  np.testing.assert_allclose(got[there], run(name, without), rtol=1e-5)


@pytest.mark.parametrize("name", ALONE)
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


@pytest.mark.parametrize("name", ALONE)
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
  got = aggregate.weighted_sum(values, weights=WEIGHTS, caps={"spatial": 0.5})
  spatial = np.minimum(values["spatial"].scalar, 0.5)
  assert (spatial == 0.5).any() and (spatial < 0.5).any()
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


def test_log_tame_tames_the_wide_one(rng):
  values = {
    "wide": records.Signals(scalar=jnp.exp(3 * rng.normal(size=B))),
    "narrow": records.Signals(scalar=jnp.asarray(5 + 0.1 * rng.random(B))),
  }
  got = run("log_tame", values, {"wide": 2.0, "narrow": 1.0})
  want = 2 * np.log1p(values["wide"].scalar) + values["narrow"].scalar
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_log_tame_tames_beside_a_judge_of_zeros():
  values = {
    "wide": records.Signals(scalar=jnp.float32([1, 1, 1, 100])),
    "none": records.Signals(scalar=jnp.zeros(4)),
  }
  got = run("log_tame", values, {"wide": 1.0, "none": 1.0})
  np.testing.assert_allclose(got, np.log1p([1, 1, 1, 100]), rtol=1e-6)


def test_win_rate_counts_a_tie_as_half():
  pair = jnp.float32([[0, 1, jnp.nan], [0, 0, 0.5], [0.5, 0.5, 0]])[None]
  signal = {"judge": records.Signals(pair=pair)}
  got = run("win_rate", signal, {"judge": 1.0})
  np.testing.assert_allclose(got, [0.75, 0.25, 0.5])
  with pytest.raises(ValueError, match="compares no pairs"):
    aggregate.win_rate(
      {"judge": records.Signals(scalar=jnp.zeros(3))}, weights={"judge": 1.0}
    )


def test_hierarchical_puts_levels_in_one_unit(rng):
  values = signals(rng)
  scaled = values | {
    "spatial": records.Signals(scalar=1000 * values["spatial"].scalar + 3)
  }
  np.testing.assert_allclose(
    run("hierarchical", scaled), run("hierarchical", values), atol=1e-3
  )


def test_vector_keeps_columns_and_fails_rows(rng):
  values = signals(rng)
  values["quality"] = records.Signals(
    scalar=values["quality"].scalar.at[2].set(-jnp.inf)
  )
  got = np.asarray(run("vector", values))
  assert got.shape == (B, 2)
  there = np.arange(B) != 2
  np.testing.assert_array_equal(got[2], -np.inf)
  np.testing.assert_allclose(
    got[there, 1], 0.75 * values["spatial"].scalar[there]
  )
