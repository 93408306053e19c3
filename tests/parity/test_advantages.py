"""Many rewards to one and rewards to advantages, against the numbers of the
public implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl import records
from spatialrl.rewards import aggregate
from spatialrl.rl import advantage

# Advantages.


@pytest.mark.parametrize(
  ("entry", "column"),
  [
    (advantage.group_mean_batch_std, "adv_global_std_True"),
    (advantage.group_z, "adv_global_std_False"),
  ],
)
def test_advantages_of_flow_grpo(golden, entry, column):
  data = golden("advantages/flow_grpo_tracker.npz")
  keep = np.ones(24, bool)
  got, _ = jax.jit(entry)(
    data["rewards"], keep, data["prompt_id"], None, None
  )
  np.testing.assert_allclose(got, data[column], rtol=0, atol=1e-6)
  constant = data["prompt_id"] == 1
  np.testing.assert_array_equal(np.asarray(got)[constant], 0.0)


@pytest.mark.parametrize(
  ("entry", "table"),
  [
    (advantage.group_mean_batch_std, "adv_per_step_global"),
    (advantage.group_z, "adv_per_step_local"),
  ],
)
def test_advantages_of_each_step_column(golden, entry, table):
  data = golden("advantages/flow_grpo_tracker.npz")
  keep = np.ones(24, bool)
  for k in range(3):
    reward = data["rewards_per_step"][:, k]
    got, _ = entry(reward, keep, data["prompt_id"], None, None)
    np.testing.assert_allclose(got, data[table][:, k], rtol=0, atol=1e-6)


def test_ema_grpo(golden):
  data = golden("advantages/ema_grpo.npz")
  stats = advantage.initial_stats("ema_task_std", prompts=0, tasks=4)
  for u in ("u0", "u1"):
    got, stats = advantage.ema_task_std(
      data[f"{u}_scores"],
      np.ones(32, bool),
      data[f"{u}_group"],
      data[f"{u}_task"],
      stats,
      decay=float(data["decay"]),
      guard=float(data["guard"]),
      min_std=float(data["min_std"]),
    )
    want = data[f"{u}_advantage"]
    there = data[f"{u}_mask"] > 0
    spread = np.broadcast_to(np.asarray(got)[:, None], want.shape)
    # The peer subtracts float32 moments too, in another order.
    np.testing.assert_allclose(
      spread[there], want[there], rtol=2e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      stats["moments"][:, 0], data[f"{u}_ema_mean"], rtol=1e-5
    )
    np.testing.assert_allclose(
      stats["moments"][:, 1], data[f"{u}_ema_m2"], rtol=1e-5
    )


# Many rewards to one.


def test_log_tamed_sum_of_paco(golden):
  data = golden("advantages/paco_log_tame.npz")
  signals = {
    n: records.Signals(scalar=jnp.asarray(data[f"reward_{n}"], jnp.float32))
    for n in "abc"
  }
  weights = dict(zip("abc", data["weights"].tolist(), strict=True))
  got = aggregate.log_tame(signals, weights=weights)
  np.testing.assert_allclose(got, data["aggregate_mean"], rtol=1e-6)
  for entry, column in (
    (advantage.group_mean_batch_std, "log_tame_then_grpo_global1"),
    (advantage.group_z, "log_tame_then_grpo_global0"),
  ):
    normed, _ = entry(
      got, np.ones(24, bool), data["prompt_id"], None, None, eps=0.0
    )
    np.testing.assert_allclose(normed, data[column], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [6, 8])
def test_win_rate_of_pref_grpo(golden, size):
  data = golden("advantages/pref_grpo.npz")
  pair = jnp.asarray(data[f"wins_{size}"])[None]
  got = aggregate.win_rate(
    {"judge": records.Signals(pair=pair)}, weights={"judge": 1.0}
  )
  # The peer rounds to three decimals and takes the sample's spread.
  np.testing.assert_allclose(got, data[f"win_rate_{size}"], atol=5.1e-4)
  group = np.zeros(size, np.int32)
  normed, _ = advantage.group_z(
    got, np.ones(size, bool), group, None, None, eps=1e-8
  )
  sample = np.sqrt((size - 1) / size)
  np.testing.assert_allclose(
    sample * normed, data[f"adv_{size}"], atol=5e-3
  )
