"""A method's own objective on the packaged policy: its loss, or a short run."""

import jax
import jax.numpy as jnp
import optax

from experiments.checks.world import GROUP
from spatialrl.parallel.mesh import make_mesh
from spatialrl.records import UpdateBatch, map_rows
from spatialrl.rl.view import View
from spatialrl.train import online, worlds
from spatialrl.train.configs import load_config
from spatialrl.train.loop import Loop
from spatialrl.train.slots import bind_all
from spatialrl.train.state import make_optimizer


def batch_of(world, path, reward, keep=None, advantage=None):
  """The UpdateBatch of a rollout of the world, every weight 1."""
  advantage = reward if advantage is None else advantage
  steps = len(path.std)
  return UpdateBatch(
      trajectory=path,
      conditioning=world.cond,
      ids=jnp.asarray(world.ids),
      reward=reward,
      advantage=advantage[None, :, None, None],
      keep=jnp.ones(len(reward), bool) if keep is None else keep,
      weight=jnp.ones((max(steps, 1), *path.final.shape[:-1])),
      visits=jnp.arange(steps),
  )


def rows_of(batch, rows):
  """The images i32[M] of an UpdateBatch."""
  return map_rows(
      lambda x, axis: x if axis is None else jnp.take(x, rows, axis), batch
  )


def visit(world, slots, batch, weights, k, key=None, judge=None):
  """(loss f32[N], metrics) of one visit of a method's objective.

  Args:
    world: World, whose base is the reference and drew the images.
    slots: of the method, as `bind_all` gives.
    batch: UpdateBatch.
    weights: of the policy being trained; None for the base.
    k: index of the visit.
    key: PRNG key, for objectives that draw.
    judge: latents -> f32[N], for objectives that differentiate it.
  """

  def field(weights):
    def velocity(x, t, text=batch.conditioning):
      return world.policy.velocity(world.params, weights, x, t, text)

    return velocity

  fields = {"new": field(weights), "old": field(None), "reference": field(None)}
  view = View(
      fields, batch, transition=slots.transition, log_prob=slots.log_prob,
      judge=judge,
  )
  return slots.objective(view, k, key)[:2]


def descent(world, method, steps):
  """Some optimizer steps of an objective that has draws, from the base.

  Args:
    world: World.
    method: name of its config.
    steps: int.

  Returns:
    compiled (UpdateBatch, rows i32[steps, M]: the images of every step) ->
    weights of the MMDiT.
  """
  config = load_config(f"configs/methods/{method}.py")
  slots = bind_all(config)
  optimizer = make_optimizer(config.optimizer, steps)

  @jax.jit
  def run(weights, batch, rows):
    def step(carry, rows):
      weights, state, key = carry
      key, own = jax.random.split(key)
      part = rows_of(batch, rows)

      def draw(total, k):
        slope = jax.grad(
            lambda w: visit(world, slots, part, w, k, own)[0].mean()
        )(weights)
        return jax.tree.map(jnp.add, total, slope), None

      zero = jax.tree.map(jnp.zeros_like, weights)
      slope, _ = jax.lax.scan(draw, zero, jnp.arange(config.objective.draws))
      slope = jax.tree.map(lambda g: g / config.objective.draws, slope)
      moves, state = optimizer.update(slope, state, weights)
      return (optax.apply_updates(weights, moves), state, key), None

    start = weights, optimizer.init(weights), jax.random.key(0)
    return jax.lax.scan(step, start, rows)[0][0]

  return lambda batch, rows: run(world.params["mmdit"], batch, rows)


def train(method, iterations, changed=(), *, trusted=None):
  """A short run of a method's config on its training prompts.

  Args:
    method: name of the config.
    iterations: int.
    changed: dict from dotted field to value, beside 3 prompts of GROUP images.
    trusted: as `worlds.World` has it; None for its own.

  Returns:
    (Policy, base weights, trained weights).
  """
  config = load_config(f"configs/methods/{method}.py")
  config.update_from_flattened_dict({
      "steps": iterations, "prompts.per_step": 3, "rollout.group": GROUP,
      "eval.prompts": 8, "eval.quick_prompts": 8,
  } | dict(changed))
  mesh = make_mesh((-1, 1, 1))
  online.check(config, mesh)
  world = worlds.scenes_world(config, None, mesh)
  loop = Loop(
      config, mesh, world.policy, world.judges, world.read,
      trusted or world.trusted,
  )
  state = loop.init(world.params)
  for step in range(iterations):
    chosen, labels = online.choose_prompts(world.prompts, config, step)
    state, _ = loop.iterate(world.params, state, chosen, labels, step)
  return world.policy, world.params, state.params
