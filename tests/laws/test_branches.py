"""The advantage of a step is that of the branch it led to."""

import numpy as np
import pytest

from spatialrl.rl.advantage import branch_depth

GROUP = np.repeat(np.arange(2, dtype=np.int32), 4)
KEEP = np.ones(8, bool)


def depths(reward, keep=KEEP, splits=(0, 2)):
  got, stats = branch_depth(
    np.float32(reward), keep, GROUP, None, {}, window=3, splits=splits, eps=0.0
  )
  assert stats == {} and got.shape == (3, 8, 1, 1)
  return np.asarray(got)[:, :, 0, 0]


def test_branches_are_worth_the_mean_of_their_leaves():
  got = depths([1, 3, 2, 6, 0, 0, 5, 5])
  np.testing.assert_allclose(got[0], [-1, -1, 1, 1] * 2, rtol=1e-5)
  np.testing.assert_allclose(got[1], got[0])
  leaves = np.array([1, 3, 2, 6.0])
  want = (leaves - leaves.mean()) / leaves.std()
  np.testing.assert_allclose(got[2, :4], want, rtol=1e-5)


def test_a_step_before_the_first_split_decides_nothing():
  np.testing.assert_array_equal(
    branch_depth(
      np.arange(8, dtype=np.float32), KEEP, GROUP, None, {}, window=2,
      splits=(1,), eps=1e-4,
    )[0][0],
    0.0,
  )


@pytest.mark.parametrize("gone", [0, 5])
def test_a_failed_leaf_leaves_its_branch_to_the_others(gone):
  reward = np.array([1, 3, 2, 6, 0, 1, 5, 5.0])
  reward[gone] = -np.inf
  got = depths(reward)
  assert np.isfinite(got).all()
  np.testing.assert_array_equal(got[:, gone], 0.0)
  other = gone ^ 1
  reward[gone] = reward[other]  # then the branch is worth the same
  mean = depths(reward)[0, other]
  assert np.sign(got[0, other]) == np.sign(mean) == -1
