"""AlignProp (arXiv:2310.03739): the reward's gradient through the sampler.

The number of steps that carry gradient is drawn every time; every step is
recomputed in the backward pass. Published with adapters, here all weights.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  steps = c.rollout.steps
  c.rollout.update({
      "window": steps, "window_range": (0, steps), "last_step": "noise",
  })
  c.transition = {"name": "ode"}
  c.select = {"name": "all"}
  c.advantage = {"name": "raw"}
  c.objective = {
      "name": "reward_chain", "draws": 1, "gradient_steps": steps,
      "random_start": True,
  }
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
