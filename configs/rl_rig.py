"""RL-RIG (arXiv:2602.19974) on the embedded world, every part of it.

  python -m spatialrl.main --config configs/rl_rig.py --workdir runs/rl_rig

Nine phases, each in a folder of its own: four parts are taught what they need,
two GRPO phases train Actor and editor, a third is the control, and the last one
measures every system. docs/rl_rig.md explains them, experiments/rl_rig has what
was measured.
"""

import pathlib

from ml_collections import config_dict

from spatialrl.train.configs import load_config

_SCHEDULE = {"name": "shifted", "shift": 3.0}


def get_config(arg=""):
  """The config; `arg` "tiny" makes a run of seconds at 16 px."""
  c = config_dict.ConfigDict()
  c.job = "reflect"
  c.seed = 0
  c.mesh = (-1, 1, 1)  # data, fsdp, tensor; -1 = all devices that are left
  c.phases = (
      "diffuser", "editor", "drawn", "checker", "actor", "actor_grpo",
      "editor_grpo", "generator_grpo", "eval",
  )

  c.diffuser = {
      "init": "policy.safetensors",
      "steps": 400,
      "batch": 64,
      "ema_decay": 0.99,
      "log_every": 25,
      "eval_every": 400,
      "checkpoint": {"every": 50, "keep_last": 1},
      "wrong_share": 0.35,  # captions that contradict one relation
      "time_shift": 3.0,
      "loss_floor": 0.05,
      "caption_dropout": 0.1,
      "optimizer": _optimizer(5e-4, 50),
      "eval": {
          "prompts": 128, "batch": 128, "steps": 8, "schedule": _SCHEDULE,
          "guidance": 1.0, "max_tokens": 27,
      },
  }
  c.editor = {
      "steps": 500,
      "batch": 64,
      "ema_decay": 0.99,
      "log_every": 25,
      "eval_every": 250,
      "checkpoint": {"every": 50, "keep_last": 1},
      "start": 0.7,  # the time to which an image is re-noised
      "time_shift": 2.0,
      "loss_floor": 0.05,
      "noise": 0.1,  # largest std added to a source in [-1, 1]
      "optimizer": _optimizer(7e-4, 50),
      "eval": {"edits": 256, "steps": 6, "shift": 2.0},
  }
  edit = {"steps": 4, "shift": 2.0}
  c.drawn = {
      "train": 2048,  # prompts, each drawn once
      "held_out": 256,
      "edits": 2,  # of each image, one after the other
      "sampling": {
          "batch": 128, "steps": 8, "schedule": _SCHEDULE, "guidance": 1.0,
      },
      "edit": edit,
  }
  c.checker = {
      "model": {
          "size": 32, "tints": 16, "masks": 4, "channels": (48, 32, 32),
          "crop": 16, "look": (32, 48, 64), "width": 128,
      },
      "steps": 2400,
      "batch": 96,  # pairs of things
      "rendered": 0.25,  # share of the images; the others are drawn
      "ema_decay": 0.98,
      "log_every": 50,
      "eval_every": 800,
      "checkpoint": {"every": 100, "keep_last": 1},
      "aside": 0.1,  # of the prompts, for the calibration
      "noise": 0.02,
      "box": 10.0,  # weight of a box's error, in sides of the picture
      "optimizer": _optimizer(2e-3, 100),
      "eval": {"batch": 128},
  }
  c.actor = {
      "model": {"size": 32, "patch": 8, "width": 96, "depth": 2, "heads": 6},
      "steps": 1500,
      "batch": 64,
      "ema_decay": 0.98,
      "log_every": 100,
      "eval_every": 500,
      "checkpoint": {"every": 100, "keep_last": 1},
      "noise": 0.05,
      "optimizer": _optimizer(1e-3, 50),
      "eval": {"rows": 512},
  }
  c.actor_grpo = {
      "steps": 64,
      "contexts": 24,  # images an iteration
      "group": 8,  # instructions for each
      "updates": 2,  # optimizer steps an iteration, on all of it
      "edit": edit,
      "length": 0.02,
      "sharpen": 2.0,  # the inverse temperature at which it starts
      "entropy": 0.01,
      "ema_decay": 0.8,
      # Divided by the spread of the batch: images for which no instruction
      # helps would else count as much as those for which one does.
      "advantage": {"name": "group_mean_batch_std", "eps": 1e-4},
      "objective": {"name": "ppo_position", "clip_range": 0.2, "adv_clip": 5.0},
      "checkpoint": {"every": 10, "keep_last": 1},
      "optimizer": _optimizer(3e-4, 5, schedule="constant"),
  }
  c.editor_grpo = {
      "steps": 48,
      "contexts": 16,
      "group": 8,  # edits of each image and instruction
      "rollout": {
          "steps": 4, "window": 2, "window_range": (0, 3),
          "shared_noise": False,
      },
      "schedule": {"name": "shifted", "shift": 2.0},
      "transition": {"name": "cps", "noise_level": 0.4},
      "log_prob": "gaussian",
      "aggregate": {
          "name": "weighted_sum", "weights": {"checker": 1.0, "preserved": 1.0},
      },
      "select": {"name": "all"},
      "advantage": {"name": "group_mean_batch_std", "eps": 1e-4},
      "credit": {"name": "judge_map", "judge": "preserved", "alpha": 1.0},
      "objective": {"name": "ppo", "clip_range": 1e-3, "adv_clip": 5.0},
      "anchor": {"name": "velocity_mse"},  # to the editor before RL
      "refresh": {"name": "fixed"},
      "behaviour": {"name": "current"},
      "train": {
          "updates": 2, "microbatch": 0, "anchor_weight": 0.1,
          "ema_decay": 0.8, "ema_every": 1,
      },
      "checkpoint": {"every": 10, "keep_last": 1},
      "optimizer": _optimizer(1e-4, 5, schedule="constant"),
  }
  c.generator_grpo = _generator()
  c.eval = {
      "seeds": (0, 1, 2),  # prompts and noise, not training
      "prompts": 512,
      "rounds": 3,
      "batch": 64,
      # Of an Actor's draws, each the best of those tried on training prompts.
      "temperature": {"actor": 0.0, "actor_grpo": 1.0},
      "sampling": c.drawn.sampling.to_dict(),
      "edit": edit,
  }
  if arg == "tiny":
    _shrink(c)
  elif arg:
    raise ValueError(f"config argument is {arg!r}; allowed is 'tiny'.")
  return c


def _generator():
  """Flow-GRPO on the Diffuser, with the quickstart's slots."""
  path = pathlib.Path(__file__).with_name("quickstart.py")
  q = load_config(path).to_dict()
  kept = (
      "lora", "rollout", "schedule", "transition", "log_prob", "credit",
      "objective", "refresh", "behaviour", "train", "optimizer", "select",
      "advantage",
  )
  g = {name: q[name] for name in kept}
  g["steps"] = 171  # as many calls of a network as in the two phases
  g["prompts"] = {"count": 1024, "per_step": 8}
  g["rollout"] |= {"group": 8, "window": 2, "chunk": 0}
  g["select"] = {"name": "topk_bottomk", "k": 2}
  g["aggregate"] = {"name": "weighted_sum", "weights": {"checker": 1.0}}
  g["rewards"] = {}  # the Checker is handed to the loop
  g["anchor"] = {"name": "none"}
  g["train"] |= {"anchor_weight": 0.0, "ema_decay": 0.8}
  g["optimizer"] |= {"schedule": "constant"}
  g["checkpoint"] = {"every": 10, "keep_last": 1}
  return g


def _shrink(c):
  """Random models of 16 px and two steps of everything."""
  for name in ("diffuser", "editor", "checker", "actor"):
    c[name].update({"steps": 2, "batch": 8, "log_every": 1, "eval_every": 2})
  c.diffuser.init = ""
  c.diffuser.policy = {
      "size": 16, "autoencoder": "", "fold": 4, "prediction": "image",
      "width": 16, "depth": 2, "heads": 2, "dual_layers": 0,
      "learned_positions": True, "qk_norm": True, "remat": True,
      "max_tokens": 27, "text_depth": 1,
  }
  c.diffuser.loss_floor = c.editor.loss_floor = 0.3
  c.checker.model = {
      "size": 16, "tints": 4, "channels": (4, 4), "crop": 8, "look": (4, 4),
      "width": 8,
  }
  c.actor.model = {"size": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2}
  c.diffuser.eval.update({"prompts": 8, "batch": 8, "steps": 2})
  c.editor.eval.update({"edits": 8, "steps": 2})
  c.drawn.update({"train": 8, "held_out": 8})
  c.drawn.sampling.update({"batch": 8, "steps": 2})
  c.checker.eval.batch = c.actor.eval.rows = 8
  for name in ("actor_grpo", "editor_grpo"):
    c[name].update({"steps": 2, "contexts": 2, "group": 4})
  c.generator_grpo.steps = 2
  c.generator_grpo.prompts.update({"count": 8, "per_step": 2})
  c.generator_grpo.rollout.update({
      "group": 4, "steps": 3, "window_range": (0, 2)
  })
  c.generator_grpo.select.k = 1
  c.eval.update({"seeds": (0,), "prompts": 8, "rounds": 2, "batch": 8})
  c.eval.sampling.update({"batch": 8, "steps": 2})


def _optimizer(rate, warmup, schedule="cosine"):
  return {
      "learning_rate": rate, "schedule": schedule, "warmup": warmup,
      "b2": 0.99, "weight_decay": 0.01, "max_norm": 1.0,
  }
