"""B2-DiffuRL (arXiv:2503.11240): the last steps first, from shared branches.

A group shares its path up to the window; only images that stand out in their
branch are kept, measured against all images of the prompt's last 8 visits, of
which a run of few iterations over many prompts has one.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({
      "window": 3, "window_moves": "backward", "window_every": 10,
      "shared_noise": True,
  })
  c.select = {"name": "branch_extremes", "threshold": 0.5}
  c.advantage = {"name": "running_per_prompt", "rounds": 8, "eps": 1e-4}
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
