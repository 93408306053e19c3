"""Shared fixtures: golden data, a seeded generator, strict JAX settings."""

import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

_GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def golden():
  """Returns a loader: `golden("cps_step/flux_6steps.npz")` -> arrays."""

  def load(name):
    with np.load(_GOLDEN / name) as arrays:
      return dict(arrays)

  return load


@pytest.fixture
def rng():
  return np.random.default_rng(0)
