"""One iteration of online training as three compiled programs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import tokenizers
from spatialrl.data.prompts import Tokens
from spatialrl.flow import rollout as rollouts
from spatialrl.parallel import mesh as meshes
from spatialrl.parallel import partition
from spatialrl.records import UpdateBatch, map_rows
from spatialrl.rewards.judges import COMPARING
from spatialrl.rewards.refresh import Refresh
from spatialrl.rl import select as selection
from spatialrl.rl.advantage import initial_stats
from spatialrl.scenes import render
from spatialrl.scenes.graph import PREDICATES
from spatialrl.train import fit_slots
from spatialrl.train.measures import Clock, reward_metrics
from spatialrl.train.slots import bind_all
from spatialrl.train.state import init_state, make_optimizer
from spatialrl.train.update import make_update

# Purposes of the run's key; 3 is the update's.
_ROLLOUT, _WINDOW, _VISITS = 1, 2, 4


def kept_rows(config):
  """Images that reach the update; static, so that shapes are."""
  groups = config.prompts.per_step
  return selection.capacity(
      config.select.name,
      batch=groups * config.rollout.group,
      groups=groups,
      k=config.select.get("k"),
  )


class Loop:
  """The compiled programs of a run: rollout, prepare, update."""

  def __init__(
      self, config, mesh, policy, judges, read=None, trusted=None
  ):
    """Binds what an iteration needs; nothing is compiled yet.

    Args:
      config: of an `online` run.
      mesh: the mesh in use.
      policy: Policy or DiffusionPolicy.
      judges: dict from name to judge.
      read: reader of `data.prompts` for this policy; None for tokens of the
        embedded world.
      trusted: as `worlds.World` has it; needed where `fit_slots.trusting` names
        a slot.
    """
    self._config, self._policy = config, policy
    self._trusted = trusted if fit_slots.trusting(config) else None
    self._read = read or Tokens(config.prompts.max_tokens)
    self._judges, self._mesh = judges, mesh
    self._slots = bind_all(config)
    self._rows = meshes.batched(mesh)
    self._times = np.asarray(self._slots.schedule(config.rollout.steps))
    self._optimizer = make_optimizer(
        config.optimizer, config.steps * config.train.updates
    )
    options = meshes.compiler_options(mesh)
    self._rollout = jax.jit(self._roll, compiler_options=options)
    self._prepare = jax.jit(self._select)
    update = make_update(
        policy,
        self._optimizer,
        self._slots,
        config.train,
        guidance=config.rollout.guidance,
        judge=fit_slots.differentiable(config, judges),
    )

    def placed_update(base, state, batch):
      state, metrics = update(base, state, batch)
      return partition.constrain(mesh, policy.family, state), metrics

    self._update = jax.jit(
        placed_update, donate_argnums=1, compiler_options=options
    )
    self._look_up = jax.jit(self._encode_trusted)
    self._refresh = Refresh(config, self._slots.refresh, judges)
    blocks = config.rollout.attention_blocks
    self._ahead = {}  # by step, what `_draw` gave before it was due
    self._words = tokenizers.word_table(
        tokenizers.load(), config.rollout.attention_words
    ) if blocks else None

  def init(self, base):
    """The state at step 0, placed on the mesh."""
    placed = jax.tree.map(lambda x: x.sharding, self.shapes(base))
    return jax.jit(self._start, out_shardings=placed)(base)

  def shapes(self, base):
    """What `init` gives, as placed ShapeDtypeStructs; nothing is computed."""
    made = jax.eval_shape(self._start, base)
    return partition.structs(self._mesh, self._policy.family, made)

  def _start(self, base):
    config = self._config
    stats = initial_stats(
        config.advantage.name,
        prompts=config.prompts.count,
        tasks=len(PREDICATES),
        rounds=config.advantage.get("rounds", 1),
    )

    key = jax.random.key(config.seed)
    trainable = self._policy.init_trainable(key, base)
    return init_state(
        trainable, self._optimizer, config.seed, stats,
        keeps_old=config.behaviour.name != "current",
        judges=self._refresh.init(),
    )

  def iterate(
      self, base, state, prompts, labels, step, pause=lambda: None,
      upcoming=None,
  ):
    """One pass of the pipeline.

    Args:
      base: the frozen base weights.
      state: TrainState; donated.
      prompts: list of B str, groups contiguous.
      labels: i32[B], as `choose_prompts` gives.
      step: int, index of the iteration.
      pause: called between the programs, while `state` is still whole.
      upcoming: prompts of the next iteration. With behaviour "previous" their
        rollout starts before the judges of this one; nothing else changes.

    Returns:
      (TrainState, dict of numbers for `metrics.jsonl`).
    """
    config = self._config
    clock = Clock()
    text, drawn = self._ahead.pop(step, None) or self._draw(
        base, state.old or state.params, prompts, state.key, step
    )
    clock.lap("host")
    trajectory, cond, images = jax.block_until_ready(drawn)
    clock.lap("rollout")
    pause()
    behind = config.behaviour.name == "previous"
    if behind and upcoming is not None:
      self._ahead[step + 1] = self._draw(
          base, state.params, upcoming, state.key, step + 1
      )
    shown, *trusted = self._trust(base, prompts, step)
    state, signals, learned = self._judge(
        state, prompts, trajectory.group, images, shown, step
    )
    jax.block_until_ready(signals)
    clock.lap("reward")
    pause()
    ids = text[0] if self._read.has_ids else None
    batch, stats, values = self._prepare(
        trajectory, cond, ids, signals, labels, state.stats, state.key, step,
        *trusted,
    )
    state = dataclasses.replace(state, stats=stats)
    state, metrics = jax.block_until_ready(self._update(base, state, batch))
    state = dataclasses.replace(state, step=state.step + 1)
    clock.lap("update")
    values = jax.device_get(values | metrics | learned)
    values["rollout_calls"] = float(
        len(prompts) * config.rollout.steps * self._twins()
    )
    if behind:  # optimizer steps between the weights that drew and these
      values["staleness"] = float(config.train.updates if step else 0)
    values["images_per_second"] = len(prompts) / clock.total()
    return state, values | clock.seconds

  def _draw(self, base, weights, prompts, key, step):
    """Starts a rollout; (tokens, its results, which need not be there yet)."""
    text = meshes.put_rows(self._mesh, self._read(prompts))
    start = window_start(self._config, key, step)
    return text, self._rollout(
        base, weights, text, self._times, key, step, start
    )

  def _trust(self, base, prompts, step):
    """Trusted images, their latents, and contradicting prompts, encoded."""
    if self._trusted is None:
      return None, None, None
    images, contrasts = self._trusted(step, prompts)
    images, text = meshes.put_rows(
        self._mesh, (render.to_float(images), self._read(contrasts))
    )
    return images, *self._look_up(base, images, text)

  def _encode_trusted(self, base, images, text):
    latents = self._policy.to_latents(base, images)
    return latents, self._policy.encode(base, *text)

  def _judge(self, state, prompts, group, images, trusted, step):
    """Signals of all judges; those who learn do so before they score."""
    learners, signals, metrics = self._refresh.learners, {}, {}
    for name, judge in self._judges.items():
      if name not in learners:
        beside = (trusted,) if name in COMPARING else ()
        signals[name] = judge(images, prompts, *beside)
    if self._refresh.due(step):
      judges, metrics = self._refresh(
          state.judges, prompts, group, images, trusted, signals
      )
      state = dataclasses.replace(state, judges=judges)
    for name in learners:
      signals[name] = self._judges[name](
          images, prompts, state.judges[name]["weights"]
      )
    return state, signals, metrics

  def _twins(self):
    """Network calls an image: guidance asks for the empty prompt as well."""
    return 1 if self._config.rollout.guidance == 1 else 2

  def programs(self):
    """The jitted functions of an iteration, in the order of `iterate`."""
    return {
        "rollout": self._rollout,
        "prepare": self._prepare,
        "update": self._update,
    }

  def compilations(self):
    """Programs compiled so far, by phase; more than one is a bug."""
    counts = {n: p._cache_size() for n, p in self.programs().items()}
    judged = {n: judge.compilations() for n, judge in self._judges.items()}
    return counts | judged | self._refresh.compilations()

  def _roll(self, base, trainable, text, times, key, step, start):
    """Encodes the prompts and samples; see `rollout`."""
    config, policy = self._config, self._policy
    text = jax.lax.with_sharding_constraint(text, self._rows)
    group = jnp.arange(text[0].shape[0]) // config.rollout.group
    key = jax.random.fold_in(jax.random.fold_in(key, step), _ROLLOUT)
    # Told, for a `tensor` axis would else split the states by channels.
    cond = jax.lax.with_sharding_constraint(
        policy.encode(base, *text), self._rows
    )
    empty = policy.encode_empty(base, cond)

    r = config.rollout
    attends = self._words is not None
    conditions, empties = cond, empty
    if attends:
      core = jnp.asarray(self._words)[text[0]]
      conditions, empties = (cond, core), (empty, jnp.zeros_like(core))

    def velocity(x, t, c):
      if not attends:
        return policy.velocity(base, trainable, x, t, c)
      c, words = c
      return policy.velocity(
          base, trainable, x, t, c, words=words,
          blocks=tuple(r.attention_blocks),
      )

    noise = rollouts.initial_noise(
        key, group, policy.latent_shape, shared=config.rollout.shared_noise
    )
    if r.chunk:
      velocity = rollouts.in_chunks(velocity, self._twins() * r.chunk)
    trajectory = rollouts.rollout(
        rollouts.guided(velocity, conditions, empties, r.guidance),
        jax.lax.with_sharding_constraint(noise, self._rows),
        times,
        key,
        group,
        transition=self._slots.transition,
        log_prob=self._slots.log_prob,
        window_start=start,
        window=r.window,
        last_step=r.last_step,
        attends=attends,
        branches=rollouts.tree(
            config.prompts.per_step, r.group, r.window, tuple(r.splits)
        ) if r.splits else None,
    )
    return trajectory, cond, self._decode(base, trajectory.final)

  def _decode(self, base, latents):
    """Images of latents, `rollout.decode_chunk` at a time where it is set."""
    rows = self._config.rollout.decode_chunk
    if not rows:
      return self._policy.decode(base, latents)
    chunked = rollouts.in_chunks(
        lambda z, *_: self._policy.decode(base, z), rows
    )
    return chunked(latents, (), ())

  def _select(
      self, trajectory, cond, ids, signals, labels, stats, key, step,
      trusted=None, contrast=None,
  ):
    """Signals to the batch of the update."""
    config, slot, group = self._config, self._slots, trajectory.group
    reward = slot.aggregate(signals)
    keep = slot.select(reward, group)
    if reward.ndim == 2:  # several signals, compared by the selector alone
      reward = reward.sum(-1)
    advantage, stats = slot.advantage(reward, keep, group, labels, stats)
    if advantage.ndim == 1:
      advantage = advantage[None, :, None, None]
    window = trajectory.t.shape[0] - 1
    visited = config.rollout.visited or window
    order = jnp.arange(window)
    if visited < window:
      key = jax.random.fold_in(jax.random.fold_in(key, step), _VISITS)
      order = jnp.sort(jax.random.permutation(key, window)[:visited])
    batch = UpdateBatch(
        trajectory=trajectory,
        conditioning=cond,
        ids=ids,
        reward=reward,
        advantage=advantage,
        keep=keep,
        weight=slot.credit(trajectory, signals),
        visits=order,
        trusted=trusted,
        contrast=contrast,
    )
    rows = selection.compact(keep, kept_rows(config))

    def take(x, axis):
      if axis is None:
        return x
      # Rows come from anywhere; left alone, every device would get them all.
      return jax.lax.with_sharding_constraint(
          jnp.take(x, rows, axis), meshes.batched(self._mesh, axis)
      )

    values = reward_metrics(reward, signals, group, keep)
    return map_rows(take, batch), stats, values


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
