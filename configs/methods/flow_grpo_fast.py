"""Flow-GRPO-Fast: the ODE but for a few noisy steps, and only those trained.

From the public repository of Flow-GRPO: a window of 2 to 3 steps, placed at
random in the first half, a = 0.8, clip 1e-5, no KL.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({"window": 3, "window_range": (0, 4)})
  c.transition = {"name": "flow_sde", "noise_level": 0.8}
  c.objective.clip_range = 1e-5
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
