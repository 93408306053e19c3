"""R0: nothing but reward, read at every step, weights held near their start.

Rewards of the predicted image at every state of a noisy path, a penalty on the
distance of the weights. It follows a README; what that leaves open was not
checked against a source.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  steps = c.rollout.steps
  c.rollout.update({"window": steps - 1, "window_range": (0, steps - 1)})
  c.transition = {"name": "cps", "noise_level": 0.5}
  c.select = {"name": "all"}
  c.advantage = {"name": "raw"}
  c.objective = {"name": "reward_step"}
  c.anchor = {"name": "weight_to_init"}
  c.train.anchor_weight = 0.1
  return c
