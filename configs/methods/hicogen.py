"""HiCoGen (arXiv:2511.19965): early noise, one start a group, three rewards.

The noise decays along sampling as a cosine. Three levels of reward, each in its
own standard deviations: the picture (quality), subjects (things), relations.
Its chain of concepts is not here.
"""

import pathlib

from spatialrl.train.configs import load_config, reward_by_aspect


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.shared_noise = True
  c.transition = {"name": "cosine_sde", "eta_max": 0.6, "eta_min": 0.0}
  weights = {"relations": 1.0, "things": 1.0, "quality": 1.0}
  reward_by_aspect(c, weights, squash=False)
  c.aggregate = {"name": "hierarchical", "weights": c.aggregate.weights}
  c.advantage = {"name": "group_z", "eps": 1e-4}
  return c
