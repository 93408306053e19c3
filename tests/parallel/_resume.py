"""Saves a training state on 2 x 2 x 2 devices, loads it on one, and back."""

import sys

import jax
import numpy as np
from _online import tiny_config
from _policy import Small

from spatialrl.io.checkpoint import Checkpointer
from spatialrl.parallel import mesh as meshes
from spatialrl.parallel import partition
from spatialrl.train.state import init_state, make_optimizer


def state_on(mesh, fill):
  """A TrainState on the mesh; `fill` tells its weights from others."""
  optimizer = make_optimizer(tiny_config().optimizer, 10)
  weights = jax.tree.map(lambda x: x + np.float32(fill), Small().init())

  def start():
    return init_state(weights, optimizer, seed=int(fill))

  placed = partition.shardings(mesh, "scenes", jax.eval_shape(start))
  return jax.jit(start, out_shardings=placed)()


def whole(state):
  """The state's leaves as numpy arrays, keys as their bits."""
  return [
    np.asarray(jax.random.key_data(x) if x is state.key else x)
    for x in jax.tree.leaves(state)
  ]


def main(directory):
  eight, one = meshes.make_mesh((2, 2, 2)), meshes.one_device()
  saved = state_on(eight, 1)
  assert not saved.params["image_ff/up"]["kernel"].is_fully_replicated
  with Checkpointer(directory, keep_last=9) as saver:
    saver.save(1, saved, {})
    alone = saver.restore(1, state_on(one, 2))
    saver.save(2, alone, {})
    back = saver.restore(2, state_on(eight, 3))
  assert all(x.sharding.num_devices == 1 for x in jax.tree.leaves(alone))
  for x, y in zip(jax.tree.leaves(saved), jax.tree.leaves(back), strict=True):
    assert x.sharding == y.sharding
  for x, y, z in zip(*map(whole, (saved, alone, back)), strict=True):
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(x, z)
  print("the same")


if __name__ == "__main__":
  main(sys.argv[1])
