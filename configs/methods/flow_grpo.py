"""Flow-GRPO (arXiv:2505.05470): every step an SDE, a clipped ratio, a KL.

Published: a = 0.7, clip 1e-4 on log-probs averaged over dimensions, advantages
by group mean and batch std, images of advantage 0 dropped, the last step not
trained, KL 0.04 in the form of the public code. Here without the noise of the
last step, which eight steps would leave in the picture. The public code drops
images after it took the spread; here groups without a spread go before, of
which a continuous reward has none.

The other configs of this folder start from this one and change slots.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  path = pathlib.Path(__file__).parents[1] / "quickstart.py"
  c = load_config(path, arg)
  steps = c.rollout.steps
  c.rollout.update({
      "window": steps - 1, "window_range": (0, steps - 1),
      "shared_noise": False, "chunk": 0,
  })
  c.transition = {"name": "flow_sde", "noise_level": 0.7}
  c.aggregate.caps = {}
  c.select = {"name": "nonzero_std"}
  c.advantage = {"name": "group_mean_batch_std", "eps": 1e-4}
  c.objective = {"name": "ppo", "clip_range": 1e-4, "adv_clip": 5.0}
  c.anchor = {"name": "kl_published"}
  c.train.update({"anchor_weight": 0.04, "ema_decay": 0.9})
  c.optimizer.schedule = "constant"
  return c
