"""The rollout of an iteration: prompts in, paths and images out, all jitted."""

import jax
import jax.numpy as jnp

from spatialrl.data import tokenizers
from spatialrl.flow import rollout as rollouts
from spatialrl.parallel import mesh as meshes

# Purposes of the run's key; `prepare` has 4, `update` 3.
_ROLLOUT, _WINDOW = 1, 2


def make_rollout(policy, slots, config, mesh):
  """Builds the rollout of one iteration.

  Args:
    policy: Policy or DiffusionPolicy.
    slots: with `transition` and `log_prob` bound.
    config: of an `online` run.
    mesh: the mesh in use.

  Returns:
    (base, trainable, tokens of B prompts, times f32[T + 1], key, step i32[],
    first step of the window i32[]) -> (Trajectory, Conditioning, images
    f32[B, S, S, 3]).
  """
  r, rows = config.rollout, meshes.batched(mesh)
  words = tokenizers.word_table(
      tokenizers.load(), r.attention_words
  ) if r.attention_blocks else None
  twins = network_calls(config, 1)

  def rollout(base, trainable, text, times, key, step, start):
    text = jax.lax.with_sharding_constraint(text, rows)
    group = jnp.arange(text[0].shape[0]) // r.group
    key = jax.random.fold_in(jax.random.fold_in(key, step), _ROLLOUT)
    # Told, for a `tensor` axis would else split the states by channels.
    cond = jax.lax.with_sharding_constraint(policy.encode(base, *text), rows)
    empty = policy.encode_empty(base, cond)
    conditions, empties = cond, empty
    if words is not None:
      core = jnp.asarray(words)[text[0]]
      conditions, empties = (cond, core), (empty, jnp.zeros_like(core))

    def velocity(x, t, c):
      if words is None:
        return policy.velocity(base, trainable, x, t, c)
      c, core = c
      return policy.velocity(
          base, trainable, x, t, c, words=core,
          blocks=tuple(r.attention_blocks),
      )

    noise = rollouts.initial_noise(
        key, group, policy.latent_shape, shared=r.shared_noise
    )
    if r.chunk:
      velocity = rollouts.in_chunks(velocity, twins * r.chunk)
    trajectory = rollouts.rollout(
        rollouts.guided(velocity, conditions, empties, r.guidance),
        jax.lax.with_sharding_constraint(noise, rows),
        times,
        key,
        group,
        transition=slots.transition,
        log_prob=slots.log_prob,
        window_start=start,
        window=r.window,
        last_step=r.last_step,
        attends=words is not None,
        branches=rollouts.tree(
            config.prompts.per_step, r.group, r.window, tuple(r.splits)
        ) if r.splits else None,
    )
    return trajectory, cond, decode(base, trajectory.final)

  def decode(base, latents):
    if not r.decode_chunk:
      return policy.decode(base, latents)
    chunked = rollouts.in_chunks(
        lambda z, *_: policy.decode(base, z), r.decode_chunk
    )
    return chunked(latents, (), ())

  return rollout


def network_calls(config, steps):
  """Calls of the network for one image; guidance asks for the empty prompt."""
  return steps * (1 if config.rollout.guidance == 1 else 2)


def window_start(config, key, step):
  """First step of the window of an iteration, i32[].

  "random" is uniform over the range (Flow-GRPO-Fast); "moving" goes from its
  start to its end, one step every `window_every` iterations, and begins again
  (MixGRPO, arXiv:2507.21802); "backward" goes the other way and widens nothing,
  so that the last steps are learned first (B2-DiffuRL, arXiv:2503.11240).
  """
  r = config.rollout
  low, high = r.window_range
  places = high - low - r.window + 1
  if r.window_moves == "random":
    key = jax.random.fold_in(jax.random.fold_in(key, step), _WINDOW)
    return jax.random.randint(key, (), low, low + places)
  moved = jnp.asarray(step) // r.window_every
  if r.window_moves == "moving":
    return low + moved % places
  return low + jnp.maximum(places - 1 - moved, 0)
