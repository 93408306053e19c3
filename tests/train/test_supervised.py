"""The loop of supervised jobs: what it refuses, and what it never saves."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from spatialrl.train.run import NonFiniteErrorAt
from spatialrl.train.supervised import fit

_CONFIG = {
  "job": "pretrain", "steps": 4, "batch": 2, "seed": 0, "ema_decay": 0.9,
  "log_every": 4, "eval_every": 4, "checkpoint": {"every": 1, "keep_last": 2},
  "optimizer": {
    "learning_rate": 1e-2, "schedule": "constant", "warmup": 1, "b2": 0.99,
    "weight_decay": 0.0, "max_norm": 1.0,
  },
}


def run(config, workdir, mesh):
  def loss(params, batch, key):
    del key
    return jnp.mean(batch * params["pool"]), {}

  def make_batch(step):
    return np.full((2, 2), np.nan if step == 2 else 1.0, np.float32)

  params = {"pool": np.ones((2, 2), np.float32)}
  return fit(config, workdir, mesh, params, loss, make_batch, lambda ema: {})


def test_what_is_no_number_is_not_saved(mesh, tmp_path):
  config = config_dict.ConfigDict(_CONFIG)
  with pytest.raises(NonFiniteErrorAt, match=r"at step 3.*is step 2\."):
    run(config, tmp_path, mesh)
  saved = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert not any("3" in name for name in saved), saved


@pytest.mark.parametrize(
  ("field", "value"), [("log_every", 0), ("batch", 0), ("ema_decay", 1.0)]
)
def test_numbers_out_of_range_are_named(field, value, mesh, tmp_path):
  config = config_dict.ConfigDict(_CONFIG)
  config[field] = value
  with pytest.raises(ValueError, match=f"^{field} is {value}; "):
    run(config, tmp_path, mesh)
