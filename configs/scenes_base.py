"""The embedded base policy: flow matching on scenes with unreliable captions.

  python -m spatialrl.main --config configs/scenes_base.py --workdir runs/base
  python -m spatialrl.main --config configs/scenes_base.py:longer \
    --workdir runs/base_longer

35% of the captions state a wrong relation, as captions from the web do, so the
model learns to draw things well and to place them badly. Its latents are those
of configs/scenes_autoencoder.py, trained before; `:pixels` is the same network
over folded pixels, the comparison in experiments/base. The second command goes
on from the first with new scenes and more of the middle times, where shapes are
decided. Its result is the packaged `policy.safetensors`.
"""

from ml_collections import config_dict


def get_config(arg=""):
  """The config; `arg` is "", "longer", "pixels" or "tiny" (seconds, 16 px)."""
  c = config_dict.ConfigDict()
  c.job = "pretrain"
  c.seed = 0
  c.mesh = (-1, 1, 1)  # data, fsdp, tensor; -1 = all devices that are left
  c.init = ""  # a weights file to go on from, whose shapes then count
  c.steps = 10000
  c.batch = 64
  c.ema_decay = 0.999
  c.time_shift = 3.0  # towards noise, where layouts are decided
  c.loss_floor = 0.05  # below it the error of x0 counts, not that of v
  c.caption_dropout = 0.1
  c.log_every = 50
  c.eval_every = 500
  c.checkpoint = {"every": 500, "keep_last": 2}
  c.profile_steps = ()  # (first, end): iterations whose trace is written

  c.data = {
      "relations": (1,),  # of the scenes of a batch, in turn
      "wrong_share": 0.35,
  }
  c.policy = {
      "size": 32,
      "autoencoder": "runs/autoencoder/autoencoder.safetensors",
      "fold": 8,  # pixels a side of one latent position, without one
      "prediction": "velocity",
      "width": 128,
      "depth": 5,
      "heads": 4,
      "dual_layers": 0,
      "learned_positions": True,
      "qk_norm": True,
      "remat": True,
      "max_tokens": 27,
      "text_depth": 2,
  }
  c.optimizer = {
      "learning_rate": 1e-3,
      "schedule": "cosine",
      "warmup": 200,
      "b2": 0.99,
      "weight_decay": 0.01,
      "max_norm": 1.0,
  }
  c.eval = {
      "prompts": 128,
      "batch": 128,
      "steps": 10,
      "schedule": {"name": "shifted", "shift": 3.0},
      "guidance": 1.0,
      "max_tokens": 6,
  }
  if arg == "longer":
    c.init = "runs/base/policy.safetensors"
    c.seed = 1  # other scenes than before
    c.time_shift = 2.0
    c.optimizer.learning_rate = 7e-4
  if arg in ("pixels", "tiny"):
    c.loss_floor = 0.3
    c.policy.autoencoder, c.policy.prediction = "", "image"
  if arg == "tiny":
    c.steps, c.batch, c.log_every, c.eval_every = 4, 8, 2, 4
    c.policy.update({"size": 16, "width": 32, "depth": 2, "text_depth": 1})
    c.eval.update({"prompts": 8, "batch": 8, "steps": 2})
    c.checkpoint.every = 2
  elif arg not in ("", "longer", "pixels"):
    raise ValueError(
        f"config argument is {arg!r}; allowed are 'longer', 'pixels', 'tiny'."
    )
  return c
