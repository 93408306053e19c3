"""Diffusion-DPO (arXiv:2311.12908), online: the best against the worst.

Pairs come from the policy's own groups; beta as published, on errors averaged
over dimensions.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({"window": 0, "window_range": (0, 0)})
  c.transition = {"name": "ode"}
  c.select = {"name": "topk_bottomk", "k": 1}
  c.advantage = {"name": "raw"}
  c.objective = {
      "name": "dpo", "draws": 4, "time_shift": 3.0, "beta": 2000.0,
  }
  c.train.updates = 1
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
