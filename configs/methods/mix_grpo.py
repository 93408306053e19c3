"""MixGRPO (arXiv:2507.21802): a window of noise that moves along the steps.

Published: 4 of 25 steps, moved by one every 25 iterations, a = 0.7, clip 1e-4,
no KL; here 3 of 8, moved every 10.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({
      "window": 3, "window_moves": "moving", "window_every": 10,
  })
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
