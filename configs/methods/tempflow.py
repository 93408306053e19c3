"""TempFlow-GRPO (arXiv:2508.04324): one noisy step at a time, weighed by noise.

A group shares its noise and its path up to one random step and differs by that
step alone; its weight is the step's std over the mean of all steps. Read in an
abstract and an issue.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({"window": 1, "shared_noise": True})
  c.credit = {"name": "reweight"}
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
