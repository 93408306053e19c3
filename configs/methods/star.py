"""STAR (arXiv:2606.17979): the advantage where the image attends to the words.

Only the abstract is known; map, floor and clip range are our reading. The map
is a distribution over places for each word, read in the last block, where it
lies on the things (experiments/checks). The clip range of a position is
sqrt(positions) times that of an image.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.attention_blocks = (4,) if not arg else (1,)
  c.credit = {"name": "attention_map", "alpha": 0.5}
  c.objective = {"name": "ppo_position", "clip_range": 4e-4, "adv_clip": 5.0}
  return c
