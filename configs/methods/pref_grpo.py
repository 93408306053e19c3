"""Pref-GRPO (arXiv:2508.20751): who beats whom, instead of by how much.

An image's reward is its share of wins over the others of its group, ties
counting half, then a group z-score; a shared start and a random 60% of the
steps as in the published scripts, no KL, the centred ratio. The comparator is
ours: our Gaussian score, with a tie below a margin, so wide that renders which
are all right tie (experiments/checks). The plain score is reported beside it.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({
      "shared_noise": True, "visited": round(0.6 * c.rollout.window),
  })
  c.rewards.pairwise = {
      "weights": "reward.safetensors",
      "group": c.rollout.get_ref("group"),
      "tie_margin": 12.0,
  }
  c.aggregate = {
      "name": "win_rate", "weights": {"pairwise": 1.0, "spatial_score": 0.0},
  }
  c.select = {"name": "all"}
  c.advantage = {"name": "group_z", "eps": 1e-4}
  c.objective = {
      "name": "ppo_guard", "clip_range": 2e-6, "adv_clip": 5.0,
      "divide_by_interval": True,
  }
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
