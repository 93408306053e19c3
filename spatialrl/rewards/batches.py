"""Scoring many images by a program for few."""

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.parallel import mesh as meshes


def in_batches(score, inputs, batch, mesh):
  """Calls a compiled score on so many rows at a time.

  Args:
    score: function of the inputs' leaves for `batch` rows to a pytree of
      arrays with as many rows.
    inputs: tuple of pytrees of arrays with B rows.
    batch: rows of a call; 0 for all. The last call is filled up, so that one
      program serves all.
    mesh: over whose data axes the rows of a call are split.

  Returns:
    What `score` returns, of B rows.
  """
  total = len(jax.tree.leaves(inputs)[0])
  batch, parts = batch or total, []
  for start in range(0, total, batch):
    rows = np.arange(start, start + batch) % total
    part = jax.tree.map(lambda x, rows=rows: x[rows], inputs)
    parts.append(score(*meshes.put_rows(mesh, part)))
  return jax.tree.map(lambda *x: jnp.concatenate(x)[:total], *parts)
