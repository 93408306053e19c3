"""HiCoGen's exploration (arXiv:2511.19965): noise early, one start a group.

The noise decays along sampling as a cosine. Its chain of concepts and its three
levels of reward are not here: the embedded world has one level.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes a run of a few seconds at 16 px."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.shared_noise = True
  c.transition = {"name": "cosine_sde", "eta_max": 0.6, "eta_min": 0.0}
  c.advantage = {"name": "group_z", "eps": 1e-4}
  return c
