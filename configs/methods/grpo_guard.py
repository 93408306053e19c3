"""GRPO-Guard (arXiv:2510.22319): a centred ratio, evened out over steps.

Published: clip 2e-6 on the centred ratio, the loss divided by the interval, no
KL.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.objective = {
      "name": "ppo_guard", "clip_range": 2e-6, "adv_clip": 5.0,
      "divide_by_interval": True,
  }
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
