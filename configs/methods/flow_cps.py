"""Flow-CPS (arXiv:2509.05952): noise that keeps the coefficients of the flow.

On the window of Flow-GRPO-Fast, a = 0.8, clip 1e-5, no KL, as the configs of
Flow-GRPO's repository have it. The log-prob is the density; the paper's leaves
out 1/(2 std^2), which `log_prob = "residual"` gives.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo_fast.py"), arg)
  c.transition = {"name": "cps", "noise_level": 0.8}
  return c
