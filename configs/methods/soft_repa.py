"""SoftREPA (arXiv:2503.08250): a few soft text tokens, told apart by error.

Four trained tokens stand before every prompt and the model stays frozen; they
learn that an image has a lower denoising error under its own prompt than under
others. Published: tokens in five layers, images and captions of a data set, the
other captions of the batch, a learned scale and temperature. Here: one layer,
renders of the training prompts, three other prompts and the own one with its
relation flipped, scale and temperature set. Rollouts are only reported on.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.lora.soft_tokens = 4
  c.rollout.update({"window": 0, "window_range": (0, 0)})
  c.transition = {"name": "ode"}
  c.select = {"name": "all"}
  c.advantage = {"name": "raw"}
  c.objective = {
      "name": "contrastive_fm", "draws": 2, "time_shift": 3.0, "scale": 10.0,
      "temperature": 1.0, "others": 3 if not arg else 1,
  }
  c.train.updates = 1
  c.optimizer.learning_rate = 1e-2
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
