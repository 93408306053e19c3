"""SpatialScore with Flow-GRPO and top-k filtering, run to the end.

  python -m spatialrl.main --config configs/scenes_grpo.py --workdir runs/grpo

The quickstart's run with guidance, which draws things more surely, longer, and
with nothing that holds it back: accuracy at the price of diversity. `:full`
sends every image of a group into the update, the control for top-k filtering;
`:oracle` trains on the measuring stick itself, the upper bound.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` is "", "full", "oracle" or "tiny"."""
  path = pathlib.Path(__file__).with_name("quickstart.py")
  c = load_config(path, "tiny" if arg == "tiny" else "")
  c.rollout.guidance = c.eval.guidance = 1.5
  if arg == "tiny":
    return c
  c.steps = 300
  c.aggregate.caps = {}
  c.train.anchor_weight = 0.0
  c.train.ema_decay = 0.95
  c.eval.every = 25
  if arg == "full":
    c.select = {"name": "all"}
    c.rollout.chunk = 72
  elif arg == "oracle":
    c.rewards = {"oracle": {}}
    c.aggregate.weights = {"oracle": 1.0}
  elif arg:
    raise ValueError(
        f"config argument is {arg!r}; allowed are 'full', 'oracle', 'tiny'."
    )
  return c
