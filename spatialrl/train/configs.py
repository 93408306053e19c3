"""Config files as Python sees them, outside of the command line."""

import importlib.util
import pathlib

from spatialrl.models.reward_heads import ASPECTS

WORLDS = ("scenes", "images")


def load_config(path, arg=""):
  """`get_config(arg)` of a config file, as `--config PATH:ARG` gives it.

  Args:
    path: of the file.
    arg: str for `get_config`.

  Returns:
    ml_collections.ConfigDict.
  """
  path = pathlib.Path(path)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def world_of(config):
  """What a job is run on: "scenes", which is also the default, or "images".

  Raises:
    ValueError: for another value of the field `world`.
  """
  name = config.get("world", WORLDS[0])
  if name not in WORLDS:
    raise ValueError(f"world is {name!r}; allowed are {list(WORLDS)}.")
  return name


def reward_by_aspect(config, weights, *, squash):
  """Makes the packaged heads the reward; the plain score is only reported.

  Args:
    config: of an `online` run, changed in place.
    weights: dict of float by aspect; aspects left out are not judged.
    squash: whether scores are in (0, 1).
  """
  for aspect in ASPECTS:
    if aspect in weights:
      config.rewards[aspect] = {
          "weights": "heads.safetensors",
          "reward": config.rewards.spatial_score.weights,
          "squash": squash,
      }
  config.aggregate.weights.spatial_score = 0.0
  config.aggregate.weights.update(weights)
