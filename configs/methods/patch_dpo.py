"""PatchDPO (arXiv:2412.03177): keep good places, learn the bad ones anew.

Flow matching on the policy's own image, each place weighed by its quality, and
on a trusted image, each place by how badly the own one did it; no reward, no
reference model and no logistic, as in the public code. There the trusted image
shows a subject to be copied and quality is a match of features; here it is a
render of the prompt, and the quality of a place is 1 minus our flaw map.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({"window": 0, "window_range": (0, 0)})
  c.transition = {"name": "ode"}
  c.rewards.patches = {
      "weights": "heads.safetensors", "reward": c.rewards.spatial_score.weights,
  }
  c.aggregate.weights.patches = 0.0
  c.select = {"name": "all"}
  c.advantage = {"name": "raw"}
  c.credit = {"name": "patch_quality", "judge": "patches"}
  c.objective = {"name": "patch_fm", "draws": 4, "time_shift": 3.0}
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
