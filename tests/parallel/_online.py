"""A small online run on the meshes given; run as a script of its own.

  python tests/parallel/_online.py OUT SHAPE [SHAPE ...]

SHAPE is data,fsdp,tensor, or 1 for the first device alone. OUT gets an .npz a
shape: noise, rewards, losses, gradient norms, parameters, and where the
compiled programs put what they were asked to place.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from _policy import Small

from spatialrl.data import scenes
from spatialrl.data.prompts import Tokens
from spatialrl.parallel import distributed, partition
from spatialrl.parallel import mesh as meshes
from spatialrl.records import Signals, map_rows
from spatialrl.rewards.judges import Oracle
from spatialrl.train import loop as loops
from spatialrl.train import online
from spatialrl.train.configs import load_config

_QUICKSTART = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"
STEPS = 5


def tiny_config():
  """The quickstart with 32 images an iteration, 16 of them kept."""
  config = load_config(_QUICKSTART, "tiny")
  config.steps = STEPS
  config.prompts.update({"per_step": 4, "count": 16})
  config.rollout.update({
    "group": 8, "steps": 3, "chunk": 16, "window": 2, "window_range": (0, 2)
  })
  config.select.k, config.train.updates = 2, 2
  config.train.anchor_weight = 0.1
  config.objective.clip_range = 0.2
  config.optimizer.update({"learning_rate": 1e-3, "warmup": 1})
  config.aggregate = {
    "name": "weighted_sum", "weights": {"smooth": 1.0, "oracle": 0.0}
  }
  config.rewards = {"smooth": {}, "oracle": {}}
  return config


class Smooth:
  """A judge of fixed random weights: what of an image lies along them."""

  def __init__(self, mesh):
    weights = np.random.default_rng(1).normal(size=(16, 16, 3))
    weights = weights.astype(np.float32)
    rows = meshes.batched(mesh)

    def score(images):
      images = jax.lax.with_sharding_constraint(images, rows)
      return jnp.tanh((images * weights[None]).sum((1, 2, 3)) / 16)

    self._score = jax.jit(score, out_shardings=meshes.replicated(mesh))
    self.seen = []

  def __call__(self, images, prompts):
    scores = self._score(images)
    self.seen.append(np.asarray(scores))
    return Signals(scalar=scores)

  def compilations(self):
    return self._score._cache_size()


def run(config, mesh):
  """{name: array} after STEPS iterations."""
  policy, judge = Small(), Smooth(mesh)
  base = partition.place(mesh, policy.family, policy.init())
  judges = {"smooth": judge, "oracle": Oracle({}, mesh)}
  read = Tokens(config.prompts.max_tokens)
  out = {"loss": [], "grad_norm": []}
  online.check(config, mesh)
  loop = loops.Loop(config, mesh, policy, judges, read)
  state = loop.init(base)
  placed = partition.shardings(mesh, policy.family, state)
  prompts = scenes.prompts(config.seed, config.prompts.count, relations=(1,))
  for step in range(STEPS):
    chosen, labels = online.choose_prompts(prompts, config, step)
    if step == 0 and mesh.shape["tensor"] > 1 == jax.process_count():
      check_placement(loop, mesh, base, state, read(chosen), labels)
    state, values = loop.iterate(base, state, chosen, labels, step)
    for name in out:
      out[name].append(values[name])
  now = jax.tree.map(lambda x: x.sharding, state)
  assert now == placed, "the update moved the state"
  params = distributed.to_host(state.params)
  out["params"] = [np.concatenate([x.ravel() for x in jax.tree.leaves(params)])]
  out["reward"] = judge.seen
  return {name: np.stack(values) for name, values in out.items()}


def check_placement(loop, mesh, base, state, text, labels):
  """Asserts from the compiled programs that every constraint took effect."""
  text = meshes.put_rows(mesh, text)
  rows = meshes.batched(mesh)
  rolled = loop._rollout.lower(
    base, state.params, text, loop._times, state.key, 0, 0
  ).compile()
  trajectory, cond, images = rolled.output_shardings
  structs = jax.eval_shape(
    loop._rollout, base, state.params, text, loop._times, state.key, 0, 0
  )

  def same(found, wanted, struct):
    assert found.is_equivalent_to(wanted, struct.ndim), (found, struct)

  for found, struct in (
    (images, structs[2]), (trajectory.final, structs[0].final),
    *zip(jax.tree.leaves(cond), jax.tree.leaves(structs[1]), strict=True),
  ):
    same(found, rows, struct)
  same(trajectory.x, meshes.batched(mesh, 1), structs[0].x)
  scores = Signals(scalar=jax.ShapeDtypeStruct(
    (len(labels),), jnp.float32, sharding=meshes.replicated(mesh)
  ))
  args = (
    *jax.tree.map(
      lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
      structs[:2], (trajectory, cond),
    ),
    text[0], {"smooth": scores, "oracle": scores}, labels, state.stats,
    state.key, 0,
  )
  prepared = loop._prepare.lower(*args).compile().output_shardings[0]
  batch = jax.eval_shape(loop._prepare, *args)[0]
  spread = map_rows(
    lambda x, axis: None if axis is None else meshes.batched(mesh, axis), batch
  )
  for found, wanted, struct in zip(
    *(jax.tree.leaves(t, is_leaf=lambda x: x is None)
      for t in (prepared, spread, batch)),
    strict=True,
  ):
    if wanted is not None:
      same(found, wanted, struct)


def main(out, *shapes):
  distributed.start()
  config = tiny_config()
  for shape in shapes:
    if shape == "1":
      mesh = meshes.one_device()
    else:
      mesh = meshes.make_mesh([int(n) for n in shape.split(",")])
    with jax.set_mesh(mesh):
      values = run(config, mesh)
    if jax.process_index() == 0:
      np.savez(pathlib.Path(out) / f"{shape}.npz", **values)


if __name__ == "__main__":
  main(*sys.argv[1:])
