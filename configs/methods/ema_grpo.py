"""EMA-GRPO (OneThinker): advantages in the moving spread of their task.

Tasks are the directions of the prompt; decay 0.99, guard 5.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.advantage = {"name": "ema_task_std", "decay": 0.99, "guard": 5.0}
  return c
