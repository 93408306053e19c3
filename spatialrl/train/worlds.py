"""What an online run trains on: the embedded scenes, or images at large."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from spatialrl.data import scenes
from spatialrl.data.prompts import Tokens, read_prompts
from spatialrl.models.build import load_policy
from spatialrl.parallel import partition
from spatialrl.rewards.judges import check_prompts, make_judges
from spatialrl.rl.advantage import MEMORY
from spatialrl.train import backbone, finish, finish_images, needs
from spatialrl.train.configs import world_of


@dataclasses.dataclass(frozen=True)
class World:
  """Everything of a run that is not the loop.

  Attributes:
    policy: Policy or DiffusionPolicy.
    params: its base weights.
    judges: dict from name to judge.
    prompts: list of str to train on.
    read: reader of `data.prompts` for the policy.
    evaluation: with `quick` and `full`.
    trusted: (step, list of B str) -> (u8[B, S, S, 3], images that satisfy the
      prompts; list of B str, prompts that contradict them); None where no such
      images are known.
    summarise: (state, began, compilations, pause) -> dict, ends the run.
  """

  policy: Any
  params: dict
  judges: dict
  prompts: list
  read: Callable
  evaluation: Any
  summarise: Callable
  trusted: Callable | None = None


def scenes_world(config, workdir, mesh):
  """Packaged weights, prompts of the grammar, the oracle as the measure."""
  prompts = scenes.prompts(
      config.seed, config.prompts.count,
      relations=tuple(config.prompts.relations),
  )
  check_prompts(config.rewards, prompts)
  policy, params = load_policy(config.init, config.lora, config.remat)
  params = partition.place(mesh, policy.family, params)
  judges = make_judges(config.rewards, mesh)
  evaluation = finish.Evaluation(config, mesh, policy, judges)
  return World(
      policy=policy,
      params=params,
      judges=judges,
      prompts=prompts,
      read=Tokens(config.prompts.max_tokens),
      evaluation=evaluation,
      summarise=functools.partial(
          finish.summarise, config, workdir, evaluation, params
      ),
      trusted=functools.partial(
          scenes.renders, config.seed, size=policy.size
      ),
  )


def images_world(config, workdir, mesh):
  """Downloaded weights, prompts of a file, the reward itself as the measure."""
  p = config.prompts
  finish.check_quick(config.eval)
  prompts = read_prompts(p.file, p.count)
  held_out = read_prompts(p.held_out, config.eval.prompts)
  seen = sorted(set(prompts) & set(held_out))
  if seen and not config.tiny:
    raise ValueError(
        f"prompts.held_out {p.held_out!r} has {len(seen)} prompts that are also"
        f" trained on, such as {seen[0]!r}."
    )
  check_prompts(config.rewards, [*prompts, *held_out])
  opened = backbone.load(config, mesh, [*prompts, *held_out])
  judges = make_judges(config.rewards, mesh)
  evaluation = finish_images.Evaluation(
      config, mesh, opened.policy, opened.read, judges, held_out
  )
  return World(
      policy=opened.policy,
      params=opened.params,
      judges=judges,
      prompts=prompts,
      read=opened.read,
      evaluation=evaluation,
      summarise=functools.partial(
          finish_images.summarise, config, workdir, evaluation, opened
      ),
  )


def name_of(config):
  """The world of an online run.

  Raises:
    ValueError: for an unknown world, or one that another field does not fit.
  """
  name = world_of(config)
  if name == "scenes":
    return name
  for field, wrong, why in (
      (
          "rollout.attention_blocks",
          tuple(config.rollout.attention_blocks),
          "words are known in the embedded world alone; leave it empty",
      ),
      (
          "advantage.name",
          MEMORY.get(config.advantage.name) == "task" and config.advantage.name,
          "its tasks are relations of the embedded world; choose another",
      ),
      *(
          (field, value, "renders of a prompt are known in the embedded world"
           " alone; choose another")
          for field, value in needs.trusting(config)
      ),
  ):
    if wrong:
      raise ValueError(f"{field} is {wrong!r} and world {name!r}: {why}.")
  return name


WORLDS = {"scenes": scenes_world, "images": images_world}
