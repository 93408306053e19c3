"""Job `reflect`: RL-RIG's parts, its two GRPO phases, and the chain."""

import pathlib

from ml_collections import config_dict

from spatialrl.train import (
    reflect_eval,
    reflect_grpo,
    reflect_judges,
    reflect_parts,
)


def run(config, workdir, mesh):
  """Does the phases that `config.phases` names, in order, where not done.

  Each has a folder of its own in the workdir and is done once the file that it
  makes is there; a phase that was stopped goes on from its last checkpoint.

  Raises:
    ValueError: for an unknown phase.
  """
  for name in config.phases:
    if name not in PHASES:
      raise ValueError(
          f"phases has {name!r}; allowed are {list(PHASES)}."
      )
  for name in config.phases:
    phase, made = PHASES[name]
    folder = pathlib.Path(workdir, name)
    if not (folder / made).exists():
      phase(_phase_config(config, name), folder, mesh)


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
    "actor": (reflect_judges.actor, "actor.safetensors"),
    "actor_grpo": (reflect_grpo.actor_grpo, "actor.safetensors"),
    "editor_grpo": (reflect_grpo.editor_grpo, "editor.safetensors"),
    "generator_grpo": (reflect_grpo.generator_grpo, "trained.safetensors"),
    "eval": (reflect_eval.evaluate, "results.json"),
}
