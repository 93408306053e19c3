"""Start-up from the environment, alone and with what is missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.parallel import distributed


@pytest.fixture
def joined(monkeypatch):
  """Arguments of every call of `jax.distributed.initialize`."""
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a: calls.append(a))
  return calls


def variables(*values):
  return dict(zip(distributed.VARIABLES, values, strict=True))


def test_without_variables_there_is_one_process(joined):
  distributed.start({"JAX_PLATFORMS": "cpu"})
  assert not joined


def test_a_tpu_asks_its_metadata(joined):
  distributed.start({"JAX_PLATFORMS": "tpu,cpu"})
  assert joined == [()]


def test_variables_go_before_metadata(joined):
  given = variables("host:1234", "4", "3") | {"JAX_PLATFORMS": "tpu"}
  distributed.start(given)
  assert joined == [("host:1234", 4, 3)]


@pytest.mark.parametrize(
  "values", [("", "2", "0"), ("a:1", "", "0"), ("a:1", "2", "x"),
             ("a:1", "2", "2")]
)
def test_variables_that_do_not_fit_are_one_sentence(joined, values):
  with pytest.raises(ValueError, match="number of processes") as caught:
    distributed.start(variables(*values))
  assert "\n" not in str(caught.value) and not joined


def test_alone_nothing_is_asked_of_others():
  distributed.check_same({"seed": 1})
  with distributed.in_turn():
    rows = distributed.sum_rows([2.0, 3.0], [2, 0], 3)
  np.testing.assert_array_equal(rows, [3.0, 0.0, 2.0])
  host = distributed.to_host({"a": jnp.ones(2), "b": np.zeros(1)})
  assert all(type(x) is np.ndarray for x in host.values())
