"""Parrot (arXiv:2401.05675): only images that no other beats in every reward.

Two rewards, relations and things; the front of each group enters, weighted by
the sum of its rewards, without a baseline. The weighting was not checked
against the paper, whose full text was not available to us. The prompt expander
and its reward words are not here.
"""

import pathlib

from spatialrl.train.configs import load_config, reward_by_aspect


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  reward_by_aspect(c, {"relations": 1.0, "things": 1.0}, squash=True)
  c.aggregate = {"name": "vector", "weights": c.aggregate.weights}
  c.select = {"name": "pareto_front"}
  c.advantage = {"name": "raw"}
  return c
