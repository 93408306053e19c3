"""PaCo-RL (arXiv:2512.04784): rewards of large relative spread through a log.

Two rewards, relations and things, in (0, 1); a short window of noise, a = 0.8,
no KL. Its training at low and evaluation at high resolution is not here: the
embedded policy has one size.
"""

import pathlib

from spatialrl.train.configs import load_config, reward_by_aspect


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({"window": 3, "window_range": (0, 4)})
  c.transition = {"name": "flow_sde", "noise_level": 0.8}
  reward_by_aspect(c, {"relations": 1.0, "things": 1.0}, squash=True)
  c.aggregate = {"name": "log_tame", "weights": c.aggregate.weights}
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
