"""Job `online`: rollouts, rewards and policy updates."""

import functools
import time

import numpy as np

from spatialrl.flow import rollout as rollouts
from spatialrl.flow.transition import LOG_PROBS
from spatialrl.io import workdir as workdirs
from spatialrl.parallel import distributed
from spatialrl.parallel import mesh as meshes
from spatialrl.rewards.judges import close_judges
from spatialrl.rl.advantage import MEMORY
from spatialrl.rl.objectives import DENSITY
from spatialrl.scenes import grammar
from spatialrl.scenes.graph import PREDICATES
from spatialrl.train import fit_slots, limits, tiny, worlds
from spatialrl.train import loop as loops
from spatialrl.train.prepare import kept_rows
from spatialrl.train.run import Run
from spatialrl.train.slots import bind_all


def run(config, workdir, mesh):
  """Trains the policy and measures it before and after, see `worlds`."""
  began = time.perf_counter()
  with distributed.in_turn():
    config = tiny.prepare(config, workdir)
  check(config, mesh)
  workdirs.check(workdir, config)
  world = worlds.WORLDS[worlds.name_of(config)](config, workdir, mesh)
  try:
    return _train(config, workdir, mesh, world, began)
  finally:
    close_judges(world.judges)


def _train(config, workdir, mesh, world, began):
  """Iterates to the end; returns the summary."""
  loop = loops.Loop(
      config, mesh, world.policy, world.judges, world.read, world.trusted
  )
  base, prompts = world.params, world.prompts
  run_ = Run(config, workdir)
  state = loop.init(base)

  def finish(state, done, values):
    """Ends an iteration: evaluates if it is time, logs and saves."""
    if done % config.eval.every == 0 or done == config.steps:
      start = time.perf_counter()
      values = values | world.evaluation.quick(
          base, state.ema, functools.partial(run_.pause, state, done, values)
      )
      values["evaluation_seconds"] = time.perf_counter() - start
    run_.log(done, values, SHOWN)
    run_.maybe_save(state, done)

  with run_:
    state = run_.restore(state)
    if run_.unlogged:
      finish(state, int(state.step), run_.unlogged)
    for step in run_.steps(int(state.step)):
      chosen, labels = choose_prompts(prompts, config, step)
      pause = functools.partial(run_.pause, state, step)
      upcoming = None
      if step + 1 < config.steps:
        upcoming, _ = choose_prompts(prompts, config, step + 1)
      state, values = loop.iterate(
          base, state, chosen, labels, step, pause, upcoming
      )
      finish(state, step + 1, values)
    return world.summarise(
        state, began, loop.compilations(),
        functools.partial(run_.pause, state, config.steps),
    )


SHOWN = (
    "reward", "all_relations", "held_out_reward", "ratio_max", "grad_norm"
)


def check(config, mesh):
  """Refuses what cannot work, before anything is loaded or compiled."""
  worlds.name_of(config)
  p, r = config.prompts, config.rollout
  limits.at_least(config, 1, (
      "steps", "prompts.count", "prompts.per_step", "rollout.group",
      "rollout.steps", "train.updates", "train.ema_every", "advantage.rounds",
      "objective.draws", "eval.every", "eval.prompts", "eval.images",
      "eval.pairs", "eval.batch", "eval.steps", *limits.CHECKPOINT,
  ))
  limits.at_least(config, 0, (
      "rollout.chunk", "rollout.decode_chunk", "train.anchor_weight",
      *limits.OPTIMIZER,
  ))
  limits.positive(config, (
      "objective.clip_range", "objective.adv_clip", "objective.mix",
      "optimizer.max_norm",
  ))
  limits.decay(config, ("train.ema_decay", "optimizer.b2"))
  if config.log_prob not in LOG_PROBS:
    raise ValueError(
        f"log_prob is {config.log_prob!r}; allowed are {sorted(LOG_PROBS)}."
    )
  meshes.check_divides(
      mesh, "prompts.per_step x rollout.group", p.per_step * r.group
  )
  bind_all(config)
  rollouts.check_window(
      r.steps, tuple(r.window_range), r.window, config.transition.name,
      r.last_step, density=config.objective.name in DENSITY,
  )
  fit_slots.check(config)
  for field in ("chunk", "decode_chunk"):
    if r[field] and p.per_step * r.group % r[field]:
      raise ValueError(
          f"rollout.{field} is {r[field]}; it must divide the"
          f" {p.per_step * r.group} images of an iteration, or be 0."
      )
    meshes.check_divides(mesh, f"rollout.{field}", r[field])
  rows = kept_rows(config)
  if rows % config.train.updates:
    raise ValueError(
        f"train.updates is {config.train.updates}; it must divide the"
        f" {rows} images that selection keeps."
    )
  rows //= config.train.updates
  meshes.check_divides(mesh, "images of one optimizer step", rows)
  microbatch = config.train.microbatch
  if microbatch and (microbatch < 0 or rows % microbatch):
    raise ValueError(
        f"train.microbatch is {microbatch}; it must divide the {rows} images"
        " of an optimizer step, or be 0."
    )
  meshes.check_divides(mesh, "train.microbatch", microbatch)
  if p.per_step > p.count:
    raise ValueError(
        f"prompts.per_step is {p.per_step}; prompts.count allows {p.count}."
    )


def choose_prompts(prompts, config, step):
  """The prompts of an iteration, each repeated for its group.

  Returns:
    (list of B str, i32[B] what the advantage's memory is kept by: the index of
    the prompt, that of its first predicate, or 0).
  """
  rng = np.random.default_rng([config.seed, step])
  picked = rng.choice(len(prompts), config.prompts.per_step, replace=False)
  memory = MEMORY.get(config.advantage.name)
  labels = np.zeros(len(picked), np.int32)
  if memory == "prompt":
    labels = picked.astype(np.int32)
  elif memory == "task":
    graphs = [grammar.parse(prompts[i]) for i in picked]
    labels = [PREDICATES.index(g.relations[0].predicate) for g in graphs]
  group = config.rollout.group
  repeated = [prompts[i] for i in picked for _ in range(group)]
  return repeated, np.repeat(np.asarray(labels, np.int32), group)
