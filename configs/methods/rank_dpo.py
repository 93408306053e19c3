"""RankDPO (arXiv:2410.18013), online: all pairs, weighed by gain and rank.

The weights were not checked against the paper, whose full text was not
available to us. Rewards are put in [0, 1]: the judge's over 30, the score of a
clean render and more.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({"window": 0, "window_range": (0, 0)})
  c.transition = {"name": "ode"}
  c.select = {"name": "all"}
  c.advantage = {"name": "raw"}
  c.objective = {
      "name": "dpo", "draws": 4, "time_shift": 3.0, "beta": 2000.0,
      "rank_weighted": True,
  }
  c.train.updates = 1
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  c.aggregate.weights.spatial_score = 1 / 30
  return c
