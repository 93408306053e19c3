"""BranchGRPO (arXiv:2509.06040): a group grows as a tree, steps are compared.

One start a prompt; branches split in two at steps of the window, a branch is
worth the mean of its images, and advantages are standardised among the branches
of one depth. Published: splits at 4 of 20 steps, 16 leaves, eta 0.3, clip 1e-3;
here 3 splits, 8 leaves. Pruning is not here, and shared states are computed
image by image.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.group = 8 if not arg else 4
  c.rollout.update({
      "shared_noise": True, "splits": (0, 2, 4) if not arg else (0, 2),
  })
  c.transition = {"name": "dance_sde", "eta": 0.3}
  c.select = {"name": "all"}
  c.advantage = {
      "name": "branch_depth", "window": c.rollout.get_ref("window"),
      "splits": c.rollout.get_ref("splits"), "eps": 1e-4,
  }
  c.objective.clip_range = 1e-3
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
