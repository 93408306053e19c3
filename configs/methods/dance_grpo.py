"""DanceGRPO (arXiv:2505.07818): constant noise, one start a group, no KL.

Published: eta = 0.3, the images of a group start from the same noise, group
z-scores, clip 1e-4, a random 60% of the steps trained, the last step dropped
and its one-step prediction decoded.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({
      "shared_noise": True, "visited": round(0.6 * c.rollout.window),
  })
  c.transition = {"name": "dance_sde", "eta": 0.3}
  c.select = {"name": "all"}
  c.advantage = {"name": "group_z", "eps": 1e-8}
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
