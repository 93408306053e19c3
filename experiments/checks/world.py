"""The packaged policy on prompts of no training, and what a check returns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import scenes, tokenizers
from spatialrl.evals import relations
from spatialrl.flow import rollout as rollouts
from spatialrl.flow import transition as transitions
from spatialrl.flow.schedules import SCHEDULES
from spatialrl.models.build import load_policy
from spatialrl.parallel.mesh import make_mesh
from spatialrl.rewards.judges import make_judges
from spatialrl.scenes.render import to_uint8
from spatialrl.train.configs import load_config

SEED = 1 << 22  # of no training and no evaluation
PROMPTS, GROUP, STEPS = 96, 8, 8


@dataclasses.dataclass(frozen=True)
class Found:
  """What a check found.

  Attributes:
    rows: list of dicts, a table; rows or columns of the control say so.
    asked: what has to be so, in a few words.
    holds: whether it is.
    control_fails: whether the control is not; else the check proves nothing.
  """

  rows: list
  asked: str
  holds: bool
  control_fails: bool

  @property
  def verdict(self):
    if not self.control_fails:
      return "**proves nothing**"
    return "holds" if self.holds else "**FAILS**"


class World:
  """The packaged policy, some prompts, and rollouts of them."""

  def __init__(self, prompts=PROMPTS, method="pref_grpo", told=None):
    """So many prompts; the method's config says what of the policy is trained.

    `told` are other prompts, in their place.
    """
    self.config = load_config(f"configs/methods/{method}.py")
    self.policy, params = load_policy(self.config.init, self.config.lora)
    self.params = jax.tree.map(jnp.asarray, params)
    self.prompts = told or scenes.prompts(
        SEED, prompts, relations=(1,), held_out=True
    )
    self.repeated = [p for p in self.prompts for _ in range(GROUP)]
    self._programs = {}
    self.group = jnp.repeat(jnp.arange(len(self.prompts)), GROUP)
    # Prompts of several clauses are longer than the config allows for.
    longest = max(prompt.count(",") for prompt in self.prompts) + 1
    self.ids, self.mask = tokenizers.encode(
        tokenizers.load(), self.repeated, tokenizers.caption_tokens(longest)
    )

  @functools.cached_property
  def cond(self):
    """Conditioning of the images."""
    return jax.jit(self.policy.encode)(self.params, self.ids, self.mask)

  @functools.cached_property
  def smooth(self):
    """(images, Trajectory) of the ODE over its whole path, own noise each."""
    return self.rollout(
        transitions.ode, window=STEPS, last_step="noise", shared=False
    )

  @functools.cached_property
  def velocity(self):
    """Compiled (weights or None, x, t f32[]) -> v, under these prompts."""

    def ask(weights, x, t, cond):
      t = jnp.full(len(x), t)
      return self.policy.velocity(self.params, weights, x, t, cond)

    ask = jax.jit(ask)
    return lambda weights, x, t: ask(weights, x, t, self.cond)

  def rollout(
      self, transition, words=(), *, blocks=(4,), weights=None, steps=STEPS,
      start=0, window=STEPS - 1, last_step="ode", shared=True, splits=(),
      log_prob=None
  ):
    """Images u8[N, S, S, 3] and the Trajectory; settings of `rollouts.rollout`.

    `weights` are what a method trained, None for the base; with `words` the
    attention of `blocks` to them is kept.
    """
    core = None
    if words:
      core = tokenizers.word_table(tokenizers.load(), words)[self.ids]
    key = (
        transition, blocks, steps, window, last_step, shared, splits, log_prob
    )
    if key not in self._programs:
      self._programs[key] = self._program(*key)
    run = self._programs[key]
    images, path = run(
        self.params, weights, self.cond, core, jax.random.key(SEED), start
    )
    return to_uint8(jax.device_get(images)), path

  def _program(
      self, transition, blocks, steps, window, last_step, shared, splits,
      log_prob,
  ):
    @jax.jit
    def run(params, weights, cond, core, key, start):
      def velocity(x, t):
        if core is None:
          return self.policy.velocity(params, weights, x, t, cond)
        return self.policy.velocity(
            params, weights, x, t, cond, words=core, blocks=blocks
        )

      noise = rollouts.initial_noise(
          key, self.group, self.policy.latent_shape, shared=shared
      )
      path = rollouts.rollout(
          velocity, noise, SCHEDULES["shifted"](steps, shift=3.0), key,
          self.group, transition=transition, log_prob=log_prob,
          window_start=start, window=window, last_step=last_step,
          attends=core is not None,
          branches=rollouts.tree(
              len(self.prompts), GROUP, window, splits
          ) if splits else None,
      )
      return self.policy.decode(params, path.final), path

    return run

  def score(self, images):
    """The learned reward of images u8, f32[N]."""
    signals = judge("spatial_score")(to_float(images), self.repeated)
    return np.asarray(signals.scalar)

  def judged(self, images):
    """Verdicts of the oracle on images u8."""
    return relations.verdicts(self.repeated, images)


@functools.cache
def few(prompts):
  """The world of the first so many prompts."""
  return World(prompts)


@functools.cache
def judge(name, method="pref_grpo"):
  """A judge as a method's config has it."""
  rewards = load_config(f"configs/methods/{method}.py").rewards
  rewards = rewards.copy_and_resolve_references()
  return make_judges({name: rewards[name]}, make_mesh((-1, 1, 1)))[name]


def to_float(images):
  return jnp.asarray(images, jnp.float32) / 127.5 - 1


def by_group(values):
  """f32[N] -> f32[P, G]."""
  return np.asarray(values).reshape(-1, GROUP)


def cosine(a, b):
  a, b = np.ravel(a), np.ravel(b)
  return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
