"""Batches of a linear velocity field, for the laws of objectives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from spatialrl.flow import rollout as rollouts
from spatialrl.flow import schedules, transition
from spatialrl.records import Conditioning, UpdateBatch
from spatialrl.rl import objectives
from spatialrl.rl.view import View

M, H, C, STEPS = 8, 2, 3, 4
GROUP = jnp.arange(M) // 4
CPS = functools.partial(transition.cps, noise_level=0.6)
BASE = 0.5 * jax.random.normal(jax.random.key(7), (C, C))
TARGET = jax.random.normal(jax.random.key(8), (H, H, C))


def field(weights):
  def velocity(x, t, text=None):
    v = jnp.tanh(x @ weights) * (1 + t[:, None, None, None])
    return v if text is None else v + text.pooled[:, None, None]

  return velocity


def judge(latents):
  return -jnp.mean(jnp.square(latents - TARGET[None]), (1, 2, 3))


def rolled(step, window, last_step):
  path = rollouts.rollout(
    field(BASE),
    jax.random.normal(jax.random.key(1), (M, H, H, C)),
    schedules.shifted(STEPS, shift=2.0),
    jax.random.key(2),
    GROUP,
    transition=step,
    log_prob=None if step is transition.ode else transition.gaussian_log_prob,
    window_start=0,
    window=window,
    last_step=last_step,
  )
  reward = judge(path.final)
  text = jnp.zeros((M, 1, 1))
  return UpdateBatch(
    trajectory=path,
    conditioning=Conditioning(text, text[:, 0], jnp.ones((M, 1), bool)),
    ids=jnp.zeros((M, 1), jnp.int32),
    reward=reward,
    advantage=(reward - reward.mean())[None, :, None, None],
    keep=jnp.ones(M, bool),
    weight=jnp.ones((max(window, 1), M, H, H)),
    visits=jnp.arange(window),
  )


def look(weights, batch, step=CPS, old=BASE):
  return View(
    {"new": field(weights), "old": field(old), "reference": field(BASE)},
    batch,
    transition=step,
    log_prob=transition.gaussian_log_prob,
    judge=judge,
  )


def trusting(batch, contrast=0.0):
  """The batch beside images that are right, and prompts that are not."""
  text = dataclasses.replace(
    batch.conditioning, pooled=jnp.full((M, C), contrast)
  )
  trusted = jnp.roll(batch.trajectory.final, 1, 0)
  return dataclasses.replace(batch, trusted=trusted, contrast=text)


def value(name, weights, batch, k=0, **settings):
  view = look(weights, batch)
  loss, metrics, _ = objectives.OBJECTIVES[name](
    view, k, jax.random.key(3), **settings
  )
  assert loss.shape == (M,)
  assert all(metric.shape == (M,) for metric in metrics.values())
  return loss.mean()


MOVED = BASE + 0.05 * jax.random.normal(jax.random.key(9), (C, C))
DRAWS = {"draws": 2, "time_shift": 3.0}


def with_advantage(batch, advantage):
  return dataclasses.replace(batch, advantage=advantage[None, :, None, None])
