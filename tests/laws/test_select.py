"""Every selector keeps scored images only and does not care about order."""

import functools

import jax
import numpy as np
import pytest

from spatialrl.rl import select

K = 2
OPTIONS = {
  "topk_bottomk": {"k": K},
  "group_variance": {"min_std": 1.0, "max_mean": 0.6},
  "branch_extremes": {"threshold": 0.5},
}
# The Pareto front needs several signals and has its own test.
SCALAR = [name for name in select.SELECTORS if name != "pareto_front"]

SIZES = (4, 7, 5, 9)  # images per group
GROUP = np.repeat(np.arange(4, dtype=np.int32), SIZES)


def selector(name):
  return jax.jit(
    functools.partial(select.SELECTORS[name], **OPTIONS.get(name, {}))
  )


def rewards(rng, failures=0):
  reward = rng.normal(size=GROUP.size).astype(np.float32)
  reward[rng.choice(GROUP.size, failures, replace=False)] = -np.inf
  return reward


@pytest.mark.parametrize("name", SCALAR)
def test_selection_commutes_with_permuting_images(name, rng):
  reward = rewards(rng, failures=3)
  order = rng.permutation(GROUP.size)
  keep = np.asarray(selector(name)(reward, GROUP))
  moved = np.asarray(selector(name)(reward[order], GROUP[order]))
  assert keep.any()
  np.testing.assert_array_equal(moved, keep[order])


@pytest.mark.parametrize("name", SCALAR)
def test_ties_do_not_change_which_rewards_are_kept(name, rng):
  reward = rng.integers(0, 3, GROUP.size).astype(np.float32)
  order = rng.permutation(GROUP.size)
  keep = np.asarray(selector(name)(reward, GROUP))
  moved = np.asarray(selector(name)(reward[order], GROUP[order]))
  for g in range(len(SIZES)):
    np.testing.assert_array_equal(
      np.sort(reward[keep & (GROUP == g)]),
      np.sort(reward[order][moved & (GROUP[order] == g)]),
    )


@pytest.mark.parametrize("name", SCALAR)
def test_failed_scores_are_never_kept(name, rng):
  reward = rewards(rng, failures=9)
  reward[GROUP == 0] = -np.inf
  keep = np.asarray(selector(name)(reward, GROUP))
  assert keep.dtype == bool
  assert not keep[reward == -np.inf].any()


@pytest.mark.parametrize("name", SCALAR)
def test_failures_act_as_if_the_image_was_not_there(name, rng):
  reward = rewards(rng, failures=5)
  there = reward != -np.inf
  keep = np.asarray(selector(name)(reward, GROUP))
  without = selector(name)(reward[there], GROUP[there])
  np.testing.assert_array_equal(keep[there], without)


@pytest.mark.parametrize("name", SCALAR)
def test_groups_do_not_mix(name, rng):
  reward = rewards(rng)
  other = reward.copy()
  other[GROUP == 2] += 100 * rng.normal(size=SIZES[2]).astype(np.float32)
  keep = np.asarray(selector(name)(reward, GROUP))
  changed = np.asarray(selector(name)(other, GROUP))
  np.testing.assert_array_equal(keep[GROUP != 2], changed[GROUP != 2])


@pytest.mark.parametrize("name", SCALAR)
def test_a_nan_reward_is_not_hidden(name, rng):
  reward = rewards(rng)
  reward[5] = np.nan
  assert selector(name)(reward, GROUP)[5]


@pytest.mark.parametrize("name", SCALAR)
def test_capacity_holds_all_that_is_kept(name, rng):
  group = np.repeat(np.arange(3, dtype=np.int32), 8)
  reward = rng.normal(size=24).astype(np.float32)
  rows = select.capacity(name, batch=24, groups=3, k=K)
  keep = np.asarray(selector(name)(reward, group))
  assert keep.sum() == rows
  reward[:3] = -np.inf
  keep = np.asarray(selector(name)(reward, group))
  assert keep.sum() <= rows
  index = jax.jit(select.compact, static_argnums=1)(keep, rows)
  assert index.shape == (rows,)
  np.testing.assert_array_equal(
    np.asarray(index)[: keep.sum()], np.flatnonzero(keep)
  )
  assert not keep[index[keep.sum() :]].any()
  assert np.unique(index).size == rows


def test_all_keeps_every_scored_image(rng):
  reward = rewards(rng, failures=4)
  np.testing.assert_array_equal(
    selector("all")(reward, GROUP), reward != -np.inf
  )


def test_nonzero_std_drops_the_groups_that_agree(rng):
  reward = rewards(rng)
  reward[GROUP == 1] = 0.1  # its float32 mean is not exactly 0.1
  reward[GROUP == 3] = -np.inf
  reward[np.flatnonzero(GROUP == 3)[2]] = 0.5  # one image has no spread
  np.testing.assert_array_equal(
    selector("nonzero_std")(reward, GROUP), (GROUP == 0) | (GROUP == 2)
  )


@pytest.mark.parametrize("k", [1, 2])
def test_topk_bottomk_takes_the_extremes(rng, k):
  reward = rewards(rng)
  keep = np.asarray(select.topk_bottomk(reward, GROUP, k=k))
  for g in range(len(SIZES)):
    ranked = np.sort(reward[GROUP == g])
    np.testing.assert_array_equal(
      np.sort(reward[keep & (GROUP == g)]), np.r_[ranked[:k], ranked[-k:]]
    )


def test_topk_bottomk_counts_are_exact(rng):
  binary = rng.integers(0, 2, GROUP.size).astype(np.float32)
  for reward in (binary, np.zeros_like(binary)):
    keep = np.asarray(selector("topk_bottomk")(reward, GROUP))
    np.testing.assert_array_equal(np.bincount(GROUP[keep]), 2 * K)
  reward = rewards(rng)
  reward[np.flatnonzero(GROUP == 1)[:4]] = -np.inf  # 3 of 7 left
  keep = np.asarray(selector("topk_bottomk")(reward, GROUP))
  np.testing.assert_array_equal(np.bincount(GROUP[keep]), [4, 3, 4, 4])


def test_topk_bottomk_breaks_ties_by_position():
  reward = np.zeros(6, np.float32)
  group = np.zeros(6, np.int32)
  keep = selector("topk_bottomk")(reward, group)
  np.testing.assert_array_equal(keep, [1, 1, 0, 0, 1, 1])


@pytest.mark.parametrize("k", [0, 13])
def test_a_k_that_does_not_fit_is_named(k):
  with pytest.raises(ValueError, match=rf"select\.k is {k}.*1 to 12"):
    select.check_k(k, group_size=24)
  with pytest.raises(ValueError, match=rf"select\.k is {k}"):
    select.capacity("topk_bottomk", batch=48, groups=2, k=k)


def test_the_largest_k_fits():
  select.check_k(12, group_size=24)
  assert select.capacity("topk_bottomk", batch=48, groups=2, k=12) == 48


def test_capacity_lists_the_selectors():
  with pytest.raises(ValueError, match="'best'.*topk_bottomk"):
    select.capacity("best", batch=4, groups=1)


def test_group_variance_drops_what_is_good_and_agrees(rng):
  reward = 0.5 + 0.3 * rewards(rng)
  reward[GROUP == 1] = 0.95 + 0.01 * reward[GROUP == 1]  # good, agrees
  reward[GROUP == 2] = 0.01 * reward[GROUP == 2]  # agrees
  keep = select.group_variance(reward, GROUP, min_std=0.05, max_mean=0.9)
  np.testing.assert_array_equal(keep, GROUP != 1)


def test_branch_extremes_must_stand_out():
  reward = np.float32([0, 0, 0, 9, 1, 2, 3, 4, 5, 5, 5, 5])
  group = np.repeat(np.arange(3, dtype=np.int32), 4)
  keep = select.branch_extremes(reward, group, threshold=0.6)
  # The three zeros lie 0.58 spreads below their mean.
  np.testing.assert_array_equal(np.flatnonzero(keep), [3, 4, 7])


def test_the_front_is_what_nobody_of_the_group_beats(rng):
  reward = np.float32([[1, 1], [2, 0], [0, 2], [1, 0], [9, 9], [1, 1], [3, 3]])
  group = np.int32([0, 0, 0, 0, 1, 0, 1])
  reward = np.concatenate([reward, np.full((1, 2), -np.inf, np.float32)])
  group = np.append(group, np.int32(0))
  keep = jax.jit(select.pareto_front)(reward, group)
  # [1, 1] twice: equals do not beat each other.
  np.testing.assert_array_equal(np.flatnonzero(keep), [0, 1, 2, 4, 5])
  order = rng.permutation(8)
  np.testing.assert_array_equal(
    select.pareto_front(reward[order], group[order]), keep[order]
  )
  with pytest.raises(ValueError, match="needs aggregate.name 'vector'"):
    select.pareto_front(reward[:, 0], group)
