"""IterComp (arXiv:2410.07171): three judges, a hinge on each, taught anew.

The gradient of three rewards at the image predicted by a random late step, each
worth no more above its margin (the published hinge at 2), beside the loss of
pretraining on trusted images. Every 20 iterations the judges learn a ranked
gallery of the policy's newest images and of renders. Published: a gallery of
several models, ranked by people and growing from round to round; here the
newest images alone, ranked by the frozen reward for relations and things, while
for quality a render is better than what the policy draws.
"""

import pathlib

from spatialrl.train.configs import load_config, reward_by_aspect


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("refl.py"), arg)
  weights = {"relations": 1.0, "things": 1.0, "quality": 1.0}
  reward_by_aspect(c, weights, squash=False)
  c.aggregate.caps = dict.fromkeys(weights, 2.0)
  c.refresh = {
      "name": "iterative_reward", "every": 20 if not arg else 2, "steps": 20,
      "learning_rate": 1e-3,
      "experts": {
          "relations": "spatial_score", "things": "spatial_score",
          "quality": "trusted",
      },
  }
  c.anchor = {"name": "fm_replay", "time_shift": 3.0}
  c.train.anchor_weight = 1.0
  return c
