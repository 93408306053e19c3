"""Scores by aspect and a map of flaws, on the packaged reward's backbone.

  python -m spatialrl.main --config configs/scenes_heads.py --workdir runs/heads

The result is the packaged `heads.safetensors`: judges for ImageDoctor, SRUM,
IterComp, PaCo, Parrot and HiCoGen in configs/methods.
"""

from ml_collections import config_dict


def get_config(arg=""):
  """The config; `arg` "tiny" makes a run of seconds."""
  c = config_dict.ConfigDict()
  c.job = "heads"
  c.seed = 0
  c.mesh = (-1, 1, 1)
  c.reward = "reward.safetensors"  # whose backbone the heads stand on
  c.steps = 1500
  c.batch = 64  # comparisons
  c.ema_decay = 0.99
  c.log_every = 50
  c.eval_every = 500
  c.checkpoint = {"every": 500, "keep_last": 2}
  c.profile_steps = ()  # (first, end): iterations whose trace is written

  c.data = {
      "relations": (1, 1, 2, 3),  # of the prompts of a batch, in turn
      "noise": 0.3,  # largest std of the noise added to an image in [-1, 1]
  }
  c.optimizer = {
      "learning_rate": 2e-3,
      "schedule": "cosine",
      "warmup": 100,
      "b2": 0.99,
      "weight_decay": 0.01,
      "max_norm": 1.0,
  }
  c.eval = {"pairs": 2000, "batch": 250}
  if arg == "tiny":
    c.steps, c.batch, c.log_every, c.eval_every = 4, 8, 2, 4
    c.eval.update({"pairs": 16, "batch": 16})
    c.checkpoint.every = 2
  elif arg:
    raise ValueError(f"config argument is {arg!r}; allowed is 'tiny'.")
  return c
