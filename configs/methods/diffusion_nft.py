"""DiffusionNFT (arXiv:2509.16117): no likelihood, learns from finished images.

Published: images of a slowly moving policy by the ODE, b = 1, velocity error to
the base 1e-4, no guidance, advantages by group mean and batch std.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({"window": 0, "window_range": (0, 0)})
  c.transition = {"name": "ode"}
  c.select = {"name": "all"}
  c.objective = {
      "name": "nft", "draws": 4, "time_shift": 3.0, "mix": 1.0,
      "adv_clip": 5.0,
  }
  c.behaviour = {"name": "ema_old", "rate": 0.001, "ceiling": 0.5}
  c.anchor = {"name": "velocity_mse"}
  c.train.anchor_weight = 1e-4
  return c
