"""IterComp (arXiv:2410.07171): three judges, a hinge on each, one late step.

The gradient of three rewards at the image predicted by a random late step, each
worth no more above its margin (the published hinge at 2). Published with a
pretraining loss beside it, here the velocity error to the base; the judges stay
as they are, without the outer rounds that train them anew.
"""

import pathlib

from spatialrl.train.configs import load_config, reward_by_aspect


def get_config(arg=""):
  """The config; `arg` "tiny" makes a run of a few seconds at 16 px."""
  c = load_config(pathlib.Path(__file__).with_name("refl.py"), arg)
  weights = {"relations": 1.0, "things": 1.0, "quality": 1.0}
  reward_by_aspect(c, weights, squash=False)
  c.aggregate.caps = dict.fromkeys(weights, 2.0)
  c.anchor = {"name": "velocity_mse"}
  c.train.anchor_weight = 0.01
  return c
