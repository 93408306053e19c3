"""PRDP (arXiv:2402.08714): differences of log-ratios fit those of rewards.

Zero loss is the optimum of the KL-regularised reward. The form of the clip
was not checked against the paper, whose full text was not available to us.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.select = {"name": "all"}
  c.advantage = {"name": "raw"}
  c.objective = {"name": "prdp", "beta": 1000.0, "clip": 1e-2}
  c.train.updates = 1
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
