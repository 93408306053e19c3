"""Job `reflect`: RL-RIG's parts, its two GRPO phases, and the chain."""

import pathlib

from ml_collections import config_dict

from spatialrl.flow.rollout import check_window
from spatialrl.models.checker import CheckerConfig
from spatialrl.rl.advantage import ADVANTAGES
from spatialrl.rl.ppo import PPO
from spatialrl.train import (
    limits,
    reflect_actor,
    reflect_edit_grpo,
    reflect_eval,
    reflect_grpo,
    reflect_judges,
    reflect_parts,
)
from spatialrl.train.slots import bind, bind_all


def run(config, workdir, mesh):
  """Does the phases that `config.phases` names, in order, where not done.

  Each has a folder of its own in the workdir and is done once the file that it
  makes is there; a phase that was stopped goes on from its last checkpoint.
  """
  check(config)
  for name in config.phases:
    phase, made = PHASES[name]
    folder = pathlib.Path(workdir, name)
    if not (folder / made).exists():
      phase(_phase_config(config, name), folder, mesh)


def check(config):
  """Refuses what cannot work, before anything is loaded or compiled."""
  for name in config.phases:
    if name not in PHASES:
      raise ValueError(f"phases has {name!r}; allowed are {list(PHASES)}.")
  a, b = config.actor_grpo, config.editor_grpo
  for field, value, least in (
      ("eval.rounds", config.eval.rounds, 0),
      ("actor_grpo.group", a.group, 2),
      ("editor_grpo.group", b.group, 2),
      ("actor_grpo.updates", a.updates, 1),
  ):
    if value < least:
      raise ValueError(f"{field} is {value}; it must be at least {least}.")
  start, share = config.editor.start, config.checker.rendered
  if not 0 < start < 1:
    raise ValueError(
        f"editor.start is {start}; it must be between 0 and 1."
    )
  batch = config.checker.batch
  if not 1 <= round(share * batch) <= batch:
    raise ValueError(
        f"checker.rendered is {share}; of a batch of {batch} at least one image"
        " must be rendered, at most all."
    )
  limits.positive(config, ("actor_grpo.sharpen",))
  CheckerConfig(**config.checker.model.to_dict())
  bind(ADVANTAGES, a.advantage, "advantage")
  bind(PPO, a.objective, "objective")
  bind_all(b)
  check_window(
      b.rollout.steps, tuple(b.rollout.window_range), b.rollout.window,
      b.transition.name, "ode",
  )
  if b.contexts * b.group % b.train.updates:
    raise ValueError(
        f"editor_grpo.train.updates is {b.train.updates}; it must divide the"
        f" {b.contexts * b.group} edits of an iteration."
    )


def _phase_config(config, name):
  """The fields of a phase and those that all phases share."""
  c = config_dict.ConfigDict(config[name].to_dict())
  c.job, c.seed = config.job, config.seed
  return c


PHASES = {
    "diffuser": (reflect_parts.diffuser, "policy.safetensors"),
    "editor": (reflect_parts.editor, "editor.safetensors"),
    "drawn": (reflect_judges.drawn, "drawn.npz"),
    "checker": (reflect_judges.checker, "checker.safetensors"),
    "actor": (reflect_actor.actor, "actor.safetensors"),
    "actor_grpo": (reflect_grpo.actor_grpo, "actor.safetensors"),
    "editor_grpo": (reflect_edit_grpo.editor_grpo, "editor.safetensors"),
    "generator_grpo": (
        reflect_edit_grpo.generator_grpo, "trained.safetensors"
    ),
    "eval": (reflect_eval.evaluate, "results.json"),
}
