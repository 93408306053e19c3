"""Adv-GRPO (arXiv:2511.20256): a discriminator that moves with the policy.

The reward is a head on a frozen backbone that learns, before every iteration,
to tell the policy's newest images from trusted ones: 0.7 times the logit of the
whole and 0.3 times that of the patches; nine optimizer steps a round, Flow-CPS,
no KL, as in the public code. Trusted images are renders of the same prompts,
and the backbone is that of the reward, which reads the prompt as well.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.transition = {"name": "cps", "noise_level": 0.8}
  c.rewards.adversarial = {"reward": c.rewards.spatial_score.weights, "seed": 0}
  c.aggregate.weights = {"adversarial": 1.0, "spatial_score": 0.0}
  c.refresh = {
      "name": "adversarial", "every": 1, "steps": 9, "learning_rate": 1e-3,
      "patch_weight": 0.3,
  }
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
