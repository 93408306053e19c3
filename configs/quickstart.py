"""A learned spatial reward teaches the packaged policy where things go.

  python -m spatialrl.main --config configs/quickstart.py \
    --workdir runs/quickstart

SpatialScore (arXiv:2602.24233) on the embedded world: the packaged policy, the
packaged reward, Flow-GRPO with top-k filtering.

170 iterations, minutes on 2 CPU cores; experiments/quickstart has what came
out.
"""

from ml_collections import config_dict


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, a CPU minute."""
  c = config_dict.ConfigDict()
  c.job = "online"
  c.seed = 0
  c.mesh = (-1, 1, 1)  # data, fsdp, tensor; -1 = all devices that are left
  c.steps = 170
  c.init = "policy.safetensors"
  c.lora = {
      "rank": 0, "alpha": 64.0, "targets": (".*",),  # 0: all weights
      "soft_tokens": 0,  # or so many text tokens, and no weights
  }
  c.remat = False  # True: recompute layers in the gradient, for less memory
  c.checkpoint = {"every": 25, "keep_last": 2}
  c.profile_steps = ()  # (first, end): iterations whose trace is written

  c.prompts = {
      "relations": (1,),
      "count": 2048,  # training prompts, none of a held-out combination
      "per_step": 12,
      "max_tokens": 6,
  }
  c.rollout = {
      "group": 12,  # images a prompt
      "steps": 8,
      "guidance": 1.0,
      # Images a network call, 0 for all. As many as in an optimizer step make
      # the first ratio exactly 1.
      "chunk": 36,
      "decode_chunk": 0,  # images decoded at a time, 0 for all
      "window": 3,  # stochastic steps, the ones that are trained
      "window_range": (0, 4),
      "window_moves": "random",
      "window_every": 25,  # iterations, where the window moves step by step
      "visited": 0,  # random steps of the window that are trained; 0: all
      "last_step": "ode",
      "shared_noise": True,
      "splits": (),  # steps of the window where a group's branches part
      "attention_blocks": (),  # whose attention to the words is recorded
      "attention_words": ("nouns", "colours"),
  }
  c.schedule = {"name": "shifted", "shift": 3.0}
  c.transition = {"name": "cps", "noise_level": 0.4}
  c.log_prob = "gaussian"
  c.rewards = {"spatial_score": {"weights": "reward.safetensors"}}
  c.aggregate = {
      "name": "weighted_sum",
      "weights": {"spatial_score": 1.0},
      # A clean render scores 25 +- 7: what is right shall not get better still.
      "caps": {"spatial_score": 18.0},
  }
  c.select = {"name": "topk_bottomk", "k": 3}
  c.advantage = {"name": "group_mean_batch_std", "eps": 1e-4}
  c.credit = {"name": "uniform"}
  c.objective = {"name": "ppo", "clip_range": 1e-4, "adv_clip": 5.0}
  c.anchor = {"name": "velocity_mse"}
  c.refresh = {"name": "fixed"}  # which judges learn during the run
  c.behaviour = {"name": "current"}  # the policy that draws the images
  c.train = {
      "updates": 2,  # optimizer steps an iteration
      "microbatch": 0,  # images a gradient, of which steps sum up; 0: all
      # Cap and anchor together keep what the base varies: rewards stop pulling
      # at what is right, and the anchor holds the rest.
      "anchor_weight": 0.0018,
      "ema_decay": 0.98,
      "ema_every": 1,
  }
  c.optimizer = {
      "learning_rate": 1e-4,
      "schedule": "cosine",  # to 0
      "warmup": 5,
      "b2": 0.99,
      "weight_decay": 0.0,
      "max_norm": 1.0,
  }
  c.eval = {
      "every": 10,
      "prompts": 512,  # held out, by label pairs
      "images": 4,  # of each
      "quick_prompts": 128,
      "pairs": 2000,
      "batch": 128,
      "steps": 8,
      "schedule": {"name": "shifted", "shift": 3.0},
      "guidance": 1.0,
      "max_tokens": 6,
  }
  if arg == "tiny":
    c.steps = 2
    c.prompts.update({"count": 16, "per_step": 2})
    c.rollout.update({"group": 4, "chunk": 2})
    c.select.k = 1
    c.eval.update({
        "every": 1, "prompts": 8, "images": 2, "quick_prompts": 8,
        "pairs": 16, "batch": 16,
    })
    c.checkpoint.every = 1
  elif arg:
    raise ValueError(f"config argument is {arg!r}; allowed is 'tiny'.")
  return c
