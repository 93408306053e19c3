"""Every advantage compares the kept images of a group with each other."""

import functools

import jax
import numpy as np
import pytest

from spatialrl.rl import advantage

SIZES = (4, 7, 5, 8)
GROUP = np.repeat(np.arange(4, dtype=np.int32), SIZES)


def batch(rng):
  """Returns rewards, a mask that empties no group, and shuffled group ids."""
  reward = rng.normal(size=GROUP.size).astype(np.float32)
  keep = rng.random(GROUP.size) < 0.7
  keep[np.cumsum(SIZES) - 1] = True
  keep[np.cumsum(SIZES) - 2] = True
  order = rng.permutation(GROUP.size)
  return reward[order], keep[order], GROUP[order]


OPTIONS = {
  "running_per_prompt": {"rounds": 2},
  "ema_task_std": {"decay": 0.9, "guard": 5.0},
}
# The others compare with other updates, or with nothing.
CENTRED = ["group_z", "group_mean_batch_std", "ema_task_std"]
UNITLESS = ["group_z", "group_mean_batch_std"]  # and have an eps to scale
# `branch_depth` needs contiguous groups of equal size; see test_branches.py.
NAMES = [name for name in advantage.ADVANTAGES if name != "branch_depth"]


def stats_of(name):
  rounds = OPTIONS.get(name, {}).get("rounds", 1)
  return advantage.initial_stats(name, prompts=4, tasks=4, rounds=rounds)


def run(name, reward, keep, group):
  entry = functools.partial(
    advantage.ADVANTAGES[name], **OPTIONS.get(name, {})
  )
  got, _ = jax.jit(entry)(reward, keep, group, group, stats_of(name))
  assert got.dtype == np.float32
  return np.asarray(got)


@pytest.mark.parametrize("name", CENTRED)
def test_the_kept_group_has_mean_zero(name, rng):
  reward, keep, group = batch(rng)
  got = run(name, reward, keep, group)
  for g in range(len(SIZES)):
    kept = got[keep & (group == g)]
    assert np.abs(kept).max() > 0.1
    assert abs(kept.mean()) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_kept_gets_zero_and_changes_nothing(name, rng):
  reward, keep, group = batch(rng)
  got = run(name, reward, keep, group)
  np.testing.assert_array_equal(got[~keep], 0.0)
  if name == "running_per_prompt":  # whose moments are those of all images
    return
  other = np.where(keep, reward, 100 * rng.normal(size=24)).astype(np.float32)
  np.testing.assert_array_equal(run(name, other, keep, group), got)


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_score_is_as_if_not_kept(name, rng):
  reward, keep, group = batch(rng)
  failed = reward.copy()
  lost = np.flatnonzero(keep)[[0, 5]]
  failed[lost] = -np.inf
  got = run(name, failed, keep, group)
  keep[lost] = False
  if name != "running_per_prompt":  # whose moments are those of all images
    failed = reward
  np.testing.assert_array_equal(got, run(name, failed, keep, group))


@pytest.mark.parametrize("name", CENTRED)
def test_a_constant_group_gets_zero(name, rng):
  reward, keep, group = batch(rng)
  reward[group == 1] = 0.1
  got = run(name, reward, keep, group)
  np.testing.assert_array_equal(got[group == 1], 0.0)
  assert np.abs(got[keep & (group == 2)]).min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_kept_images_gets_zero(name, rng):
  reward, _, group = batch(rng)
  none = np.zeros(GROUP.size, bool)
  np.testing.assert_array_equal(run(name, reward, none, group), 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_advantages_commute_with_permuting_images(name, rng):
  reward, keep, group = batch(rng)
  order = rng.permutation(GROUP.size)
  np.testing.assert_allclose(
    run(name, reward[order], keep[order], group[order]),
    run(name, reward, keep, group)[order],
    atol=1e-6,
  )


@pytest.mark.parametrize("name", UNITLESS)
def test_a_common_shift_changes_nothing(name, rng):
  reward, keep, group = batch(rng)
  reward = np.round(reward * 64) / 64  # so that adding 1024 is exact
  got = run(name, reward, keep, group)
  np.testing.assert_allclose(
    run(name, reward + 1024, keep, group), got, atol=1e-6
  )


@pytest.mark.parametrize("name", UNITLESS)
def test_the_unit_of_the_reward_does_not_matter(name, rng):
  reward, keep, group = batch(rng)
  entry = advantage.ADVANTAGES[name]
  small, _ = entry(reward, keep, group, group, None, eps=1e-4)
  large, _ = entry(1000 * reward, keep, group, group, None, eps=0.1)
  np.testing.assert_allclose(large, small, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", UNITLESS + ["raw"])
def test_entries_without_memory_return_stats_untouched(name, rng):
  stats = {"mean": np.arange(3.0), "count": np.int32(7)}
  _, got = advantage.ADVANTAGES[name](*batch(rng), None, stats)
  assert got is stats


def test_group_z_has_unit_spread_in_each_group(rng):
  reward, keep, group = batch(rng)
  got = run("group_z", reward, keep, group)
  for g in range(len(SIZES)):
    np.testing.assert_allclose(got[keep & (group == g)].std(), 1.0, rtol=1e-3)


def test_batch_std_is_that_of_all_kept_rewards(rng):
  reward, keep, group = batch(rng)
  reward = reward + 3 * group.astype(np.float32)
  got = run("group_mean_batch_std", reward, keep, group)
  chosen = keep & (group == 0)
  want = (reward[chosen] - reward[chosen].mean()) / (reward[keep].std() + 1e-4)
  np.testing.assert_allclose(got[chosen], want, atol=1e-6)


def test_a_prompt_is_compared_with_its_last_rounds(rng):
  stats = stats_of("running_per_prompt")
  label = np.repeat(np.arange(2, dtype=np.int32), 6)
  keep = np.ones(12, bool)
  keep[3] = False
  rounds = [rng.normal(size=12).astype(np.float32) for _ in range(3)]
  for reward in rounds:
    got, stats = jax.jit(
      functools.partial(advantage.running_per_prompt, rounds=2)
    )(reward, keep, label, label, stats)
  for prompt in range(2):
    mine = keep & (label == prompt)
    # The last two visits, also what selection dropped.
    past = np.stack([r[label == prompt] for r in rounds[1:]])
    want = (rounds[2][mine] - past.mean()) / past.std()
    np.testing.assert_allclose(got[mine], want, rtol=1e-3)
  np.testing.assert_array_equal(stats["visits"], [3, 3, 0, 0])


def test_a_task_not_drawn_keeps_its_spread(rng):
  entry = functools.partial(
    advantage.ema_task_std, **OPTIONS["ema_task_std"]
  )
  reward, keep, group = batch(rng)
  _, stats = entry(reward, keep, group, group, stats_of("ema_task_std"))
  _, later = entry(3 * reward, keep & (group != 2), group, group, stats)
  np.testing.assert_array_equal(later["moments"][2], stats["moments"][2])
  moved = np.abs(later["moments"] - stats["moments"]).min(1) > 0
  np.testing.assert_array_equal(moved, np.arange(4) != 2)
