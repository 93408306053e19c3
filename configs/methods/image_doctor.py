"""ImageDoctor (arXiv:2510.01010): scores, and a map of flaws that spares.

The sum of the scores is the reward; each position counts by 1 - H, H the map,
with the image's ratio and the position's own gradient. One advantage an image,
as a note on the released code has it. The heads are ours: three scores and a
map on the frozen reward backbone.
"""

import pathlib

from spatialrl.train.configs import load_config, reward_by_aspect


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  weights = {"relations": 1.0, "things": 1.0, "quality": 1.0}
  reward_by_aspect(c, weights, squash=True)
  c.credit = {
      "name": "judge_map", "judge": "relations", "alpha": 1.0, "invert": True,
  }
  c.objective = {"name": "ppo_sequence", "clip_range": 1e-4, "adv_clip": 5.0}
  return c
