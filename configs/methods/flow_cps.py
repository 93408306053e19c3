"""Flow-CPS (arXiv:2509.05952): noise that keeps the coefficients of the flow.

On the fast window, a = 0.8, clip 1e-5, no KL, as the configs of Flow-GRPO's
repository have it. The log-prob is the density; the paper's leaves out
1/(2 std^2), which `log_prob = "residual"` gives.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes a run of a few seconds at 16 px."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({"window": 3, "window_range": (0, 4)})
  c.transition = {"name": "cps", "noise_level": 0.8}
  c.objective.clip_range = 1e-5
  c.anchor = {"name": "none"}
  c.train.anchor_weight = 0.0
  return c
