"""A run seen from outside, on one device: its weights and what they draw."""

import dataclasses
import json
import pathlib

import jax
from absl import logging
from ml_collections import config_dict

from spatialrl.data import scenes
from spatialrl.data.prompts import Tokens
from spatialrl.io import steps
from spatialrl.io.checkpoint import load_params
from spatialrl.models.build import load_policy
from spatialrl.models.policy import Policy
from spatialrl.parallel.mesh import one_device
from spatialrl.train.pretrain import starting
from spatialrl.train.sampling import Sampler

JOBS = ("pretrain", "online")


@dataclasses.dataclass(frozen=True)
class Opened:
  """A run that is only looked at.

  Attributes:
    config: ConfigDict it was started with.
    policy: Policy.
    weights: dict from title ("base", "step 100") to (params, trainable) of
      that moment, numpy arrays, as `Policy.velocity` takes them; oldest
      first.
  """

  config: config_dict.ConfigDict
  policy: Policy
  weights: dict


def open_run(workdir, *, field="ema"):
  """Reads what a run with checkpoints left in its workdir.

  Args:
    workdir: directory of a `pretrain` or `online` run, running or finished;
      it is only read.
    field: "ema", the weights that are evaluated, or "params".

  Returns:
    Opened. An online run starts with its base, as `config.init` names it.

  Raises:
    ValueError: the directory is not that of such a run.
    CheckpointError: no checkpoint is whole.
  """
  workdir = pathlib.Path(workdir)
  config = _read_config(workdir)
  saved = {
    f"step {step}": load_params(workdir, step, field=field)
    for step in _whole_steps(workdir)
  }
  if config.job == "pretrain":
    policy, _, frozen = starting(config)
    weights = {t: (params | frozen, None) for t, params in saved.items()}
  else:
    policy, base = load_policy(config.init, config.get("lora"))
    weights = {"base": (base, None)}
    weights |= {title: (base, trained) for title, trained in saved.items()}
  return Opened(config, policy, weights)


def held_out_prompts(config, count, *, seed=0):
  """Prompts of the kind the run evaluates on: a list of `count` str."""
  section = config.data if config.job == "pretrain" else config.prompts
  return scenes.prompts(
    seed, count, relations=tuple(section.relations), held_out=True
  )


def draw(opened, prompts, *, seed=0):
  """Draws every prompt with the weights of every moment, on one device.

  Args:
    opened: Opened.
    prompts: list of N str.
    seed: int; image i starts from the same noise whatever the weights.

  Returns:
    Dict from title to u8[N, S, S, 3].
  """
  config = opened.config.eval.copy_and_resolve_references()
  config.batch = len(prompts)
  mesh = one_device()
  with jax.set_mesh(mesh):
    read = Tokens(config.max_tokens)
    sampler = Sampler(opened.policy, read, mesh, config)
    return {
      title: sampler(params, trainable, prompts, seed)
      for title, (params, trainable) in opened.weights.items()
    }


def _read_config(workdir):
  path = workdir.absolute() / "config.json"
  if not path.is_file():
    raise ValueError(f"{path} does not exist; give the workdir of a run")
  config = config_dict.ConfigDict(json.loads(path.read_text())["config"])
  if config.job not in JOBS:
    raise ValueError(f"{path} has job {config.job!r}; allowed are {JOBS}")
  if config.get("world", "scenes") != "scenes":
    raise ValueError(f"{path} has world {config.world!r}; allowed is 'scenes'")
  return config


def _whole_steps(workdir):
  """Steps of the checkpoints that are whole, oldest first; logs the others."""
  whole = []
  for path in steps.paths(steps.absolute(workdir / "checkpoints")):
    try:
      whole.append(steps.read_commit(path)["step"])
    except steps.CheckpointError as error:
      logging.warning("skipped: %s", error)
  if not whole:
    raise steps.CheckpointError(f"there is no whole checkpoint in {workdir}")
  return whole
