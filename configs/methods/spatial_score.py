"""SpatialScore (arXiv:2602.24233): only the best and the worst of a group.

Published: G = 24 and k = 6, statistics over the kept images, clip 1e-4, KL
0.01.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.select = {"name": "topk_bottomk", "k": c.rollout.group // 4}
  c.advantage = {"name": "group_z", "eps": 1e-4}
  c.train.anchor_weight = 0.01
  return c
