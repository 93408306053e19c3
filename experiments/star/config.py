"""STAR and its controls on one sampler, that of the quickstart.

`get_config(arg)` with `arg` a key of VARIANTS. Only where the advantage acts
differs between them.
"""

import pathlib

from spatialrl.train.configs import load_config

_STAR = pathlib.Path(__file__).parents[2] / "configs" / "methods" / "star.py"
VARIANTS = (
    "uniform",  # alpha 0: no map
    "star",
    "full",  # alpha 1: no floor
    "shuffled",  # its positions permuted
    "other",  # the map of the next image of the batch
    "function",  # attention to "of"
    "boxes",  # where the oracle finds the prompt's things
)


def get_config(arg):
  """The config of a variant."""
  if arg not in VARIANTS:
    raise ValueError(f"config argument is {arg!r}; allowed are {VARIANTS}.")
  c = load_config(_STAR)
  c.rollout.update({
      "window": 3, "window_range": (0, 4), "shared_noise": True,
  })
  c.transition = {"name": "cps", "noise_level": 0.4}
  c.select = {"name": "all"}
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  if arg == "uniform":
    c.credit.alpha = 0.0
  elif arg == "full":
    c.credit.alpha = 1.0
  elif arg in ("shuffled", "other"):
    c.credit.control = arg
  elif arg == "function":
    c.rollout.attention_words = ("function",)
  elif arg == "boxes":
    c.rewards.oracle = {"map_side": 4}
    c.aggregate.weights.oracle = 0.0
    c.credit = {"name": "judge_map", "judge": "oracle", "alpha": 0.5}
  return c
