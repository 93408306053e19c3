"""The gradient of the embedded policy on 2 x 2 x 2 devices and on one."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import tokenizers
from spatialrl.models import build
from spatialrl.parallel import mesh as meshes
from spatialrl.parallel import partition
from spatialrl.train.configs import load_config

_BASE = pathlib.Path(__file__).parents[2] / "configs" / "scenes_base.py"


def make_policy():
  """Of the smallest sizes that eight devices can share."""
  fields = load_config(_BASE, "tiny").policy
  fields.update({
    "width": 16, "depth": 2, "heads": 2, "text_depth": 1, "size": 16, "fold": 8
  })
  return build.make_policy(fields, len(tokenizers.load()))


def gradient(mesh, policy, base, batch):
  """Of a loss whose rows count with both signs, as advantages do."""

  def loss(weights, base, x, y, t, ids, mask):
    cond = policy.encode(base, ids, mask)
    error = policy.velocity(base, weights, x, t, cond) - y
    sign = jnp.where(jnp.arange(len(x)) % 2 == 0, 1.0, -1.0)
    return jnp.sum(jnp.mean(error**2, (1, 2, 3)) * sign)

  with jax.set_mesh(mesh):
    base = partition.place(mesh, policy.family, base)
    batch = meshes.put_rows(mesh, batch)
    run = jax.jit(jax.grad(loss))
    return jax.device_get(run(base["mmdit"], base, *batch))


def main():
  rng, policy = np.random.default_rng(0), make_policy()
  x, y = rng.normal(size=(2, 8, *policy.latent_shape)).astype(np.float32)
  ids = rng.integers(1, 30, (8, 6)).astype(np.int32)
  batch = x, y, np.full(8, 0.7, np.float32), ids, np.ones(ids.shape, bool)
  base = jax.tree.map(  # zero at the start, modulations would hide much
    lambda x: (x + 0.05 * rng.normal(size=x.shape)).astype(np.float32),
    jax.device_get(jax.jit(policy.init)(jax.random.key(0))),
  )
  wanted, found = (
    gradient(mesh, policy, base, batch)
    for mesh in (meshes.one_device(), meshes.make_mesh((2, 2, 2)))
  )
  largest = max(np.linalg.norm(x) for x in jax.tree.leaves(wanted))
  leaves = jax.tree_util.tree_leaves_with_path(wanted)
  for (path, x), y in zip(leaves, jax.tree.leaves(found), strict=True):
    error = np.linalg.norm(x - y)
    scale = np.linalg.norm(x) + 1e-5 * largest  # some are zero by symmetry
    assert error <= 1e-3 * scale, (partition.name(path), error / scale)


if __name__ == "__main__":
  main()
