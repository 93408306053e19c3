"""A small AutoencoderKL for scenes: 32 px to 4 x 4 latents of 16 channels.

  python -m spatialrl.main --config configs/scenes_autoencoder.py \
    --workdir runs/autoencoder

The base policy (configs/scenes_base.py) is trained on its latents.
"""

from ml_collections import config_dict


def get_config(arg=""):
  """The config; `arg` "tiny" makes a run of a few seconds at 16 px."""
  c = config_dict.ConfigDict()
  c.job = "autoencoder"
  c.seed = 0
  c.mesh = (-1, 1, 1)  # data, fsdp, tensor; -1 = all devices that are left
  c.size = 32
  c.steps = 2000
  c.batch = 64
  c.ema_decay = 0.995
  c.kl_weight = 3e-4
  c.log_every = 50
  c.eval_every = 250
  c.checkpoint = {"every": 250, "keep_last": 2}
  c.profile_steps = ()  # (first, end): iterations whose trace is written

  c.data = {"relations": (1, 3)}  # scenes of two things and of three
  c.autoencoder = {
      "channels": (8, 16, 32, 64),
      "latents": 16,
      "layers": 1,
      "groups": 4,
  }
  c.optimizer = {
      "learning_rate": 2e-3,
      "schedule": "cosine",
      "warmup": 100,
      "b2": 0.99,
      "weight_decay": 0.0,
      "max_norm": 1.0,
  }
  c.eval = {"images": 256}
  if arg == "tiny":
    c.size = 16
    c.steps, c.batch, c.log_every, c.eval_every = 4, 8, 2, 4
    c.eval.images = 8
    c.checkpoint.every = 2
  elif arg:
    raise ValueError(f"config argument is {arg!r}; allowed is 'tiny'.")
  return c
