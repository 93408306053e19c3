"""One iteration of online training as three compiled programs."""

import dataclasses

import jax
import numpy as np

from spatialrl.data.prompts import Tokens
from spatialrl.parallel import mesh as meshes
from spatialrl.parallel import partition
from spatialrl.rewards.judges import COMPARING
from spatialrl.rewards.refresh import Refresh
from spatialrl.rl.advantage import initial_stats
from spatialrl.rl.ema import EARLY
from spatialrl.scenes import render
from spatialrl.scenes.graph import PREDICATES
from spatialrl.train import needs
from spatialrl.train.draw import make_rollout, network_calls, window_start
from spatialrl.train.measures import Clock
from spatialrl.train.prepare import make_prepare
from spatialrl.train.slots import bind_all
from spatialrl.train.state import init_state, make_optimizer
from spatialrl.train.update import make_update


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
      trusted: as `worlds.World` has it; needed where `needs.trusting` names
        a slot.
    """
    self._config, self._policy = config, policy
    self._trusted = trusted if needs.trusting(config) else None
    self._read = read or Tokens(config.prompts.max_tokens)
    self._judges, self._mesh = judges, mesh
    self._slots = bind_all(config)
    self._times = np.asarray(self._slots.schedule(config.rollout.steps))
    self._optimizer = make_optimizer(
        config.optimizer, config.steps * config.train.updates
    )
    options = meshes.compiler_options(mesh)
    self._rollout = jax.jit(
        make_rollout(policy, self._slots, config, mesh),
        compiler_options=options,
    )
    self._prepare = jax.jit(make_prepare(self._slots, config, mesh))
    update = make_update(
        policy,
        self._optimizer,
        self._slots,
        config.train,
        guidance=config.rollout.guidance,
        judge=needs.differentiable(config, judges),
    )

    def placed_update(base, state, batch):
      state, metrics = update(base, state, batch)
      return partition.constrain(mesh, policy.family, state), metrics

    self._update = jax.jit(
        placed_update, donate_argnums=1, compiler_options=options
    )
    self._look_up = jax.jit(self._encode_trusted)
    self._refresh = Refresh(config, self._slots.refresh, judges)
    self._ahead = {}  # by step, what `_draw` gave before it was due

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
      upcoming: prompts of the next iteration. With a behaviour of `ema.EARLY`
        their rollout starts before the judges of this one; the numbers stay.

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
    early = config.behaviour.name in EARLY
    if early and upcoming is not None:
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
        len(prompts) * network_calls(config, config.rollout.steps)
    )
    if early:  # optimizer steps between the weights that drew and these
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
