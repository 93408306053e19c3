"""The gradient of an MMDiT on 2 x 2 x 2 devices against that on one."""

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.models.mmdit import MMDiT, MMDiTConfig
from spatialrl.parallel import mesh as meshes
from spatialrl.parallel import partition


def gradient(mesh, network, weights, batch):
  """Of a loss whose rows count with both signs, as advantages do."""

  def loss(weights, x, text, pooled):
    v = network.apply({"params": weights}, x, jnp.full(len(x), 0.7), text,
                      pooled)
    return jnp.sum(v[::2] ** 2) - jnp.sum(v[1::2] ** 2)

  with jax.set_mesh(mesh):
    placed = partition.place(mesh, "sd3", weights)
    batch = meshes.put_rows(mesh, batch)
    return jax.device_get(jax.jit(jax.grad(loss))(placed, *batch))


def main():
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  network = MMDiT(MMDiTConfig(width=16, depth=2, heads=2, channels=8, patch=1))
  batch = normal(8, 2, 2, 8), normal(8, 3, 16), normal(8, 16)
  shapes = jax.eval_shape(
    lambda: network.init(jax.random.key(0), batch[0], jnp.ones(8), *batch[1:])
  )["params"]
  weights = jax.tree.map(lambda x: 0.2 * normal(*x.shape), shapes)
  wanted, found = (
    gradient(mesh, network, weights, batch)
    for mesh in (meshes.one_device(), meshes.make_mesh((2, 2, 2)))
  )
  largest = max(np.linalg.norm(x) for x in jax.tree.leaves(wanted))
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found),
    strict=True,
  )
  for (path, x), y in pairs:
    error = np.linalg.norm(x - y)
    scale = np.linalg.norm(x) + 1e-6 * largest  # some are zero by symmetry
    assert error <= 1e-4 * scale, (partition.name(path), error / scale)


if __name__ == "__main__":
  main()
