"""D3PO (arXiv:2311.13231), online: DPO on every transition of the path.

Ratios to the frozen base, clipped to 1 +- 1e-2 in our mean log-probs (the range
is ours); only the order of two images counts, not their scores.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.select = {"name": "topk_bottomk", "k": 1}
  c.advantage = {"name": "raw"}
  c.objective = {"name": "d3po", "beta": 100.0, "clip_range": 1e-2}
  c.train.updates = 1
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
