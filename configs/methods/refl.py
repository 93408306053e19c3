"""ReFL (ImageReward, arXiv:2304.05977): one late step carries the gradient.

The state of a random step of the last quarter is the rollout's, the reward that
of the image predicted there. Without the pretraining loss beside it.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  steps = c.rollout.steps
  late = max(steps // 4, 1)
  c.rollout.update({
      "window": late, "window_range": (steps - late, steps), "visited": 1,
      "last_step": "noise",
  })
  c.transition = {"name": "ode"}
  c.select = {"name": "all"}
  c.advantage = {"name": "raw"}
  c.objective = {"name": "reward_step"}
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
