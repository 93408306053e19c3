"""SpatialScore on Qwen2.5-VL teaches SD3.5-Medium where things go.

  python -m spatialrl.main --config configs/sd35_spatialscore_grpo.py \
    --workdir runs/sd35 --config.model.folder=DIR \
    --config.rewards.qwen_score.folder=DIR \
    --config.rewards.qwen_score.weights=FILE --config.prompts.file=FILE \
    --config.prompts.held_out=FILE

Flow-GRPO with top-k filtering as SpatialScore (arXiv:2602.24233) prints it for
FLUX: G = 24, 6 steps, k = 6, rate 3e-4, clip 1e-4, KL 0.01, LoRA of rank 32.
Noise level and guidance are Flow-GRPO's for SD3.5-Medium (arXiv:2505.05470);
prompts an iteration and optimizer steps are ours. docs/real_models.md says what
the folders hold. `:tiny` needs none of them and runs the whole job on random
weights in the time it takes to compile.
"""

from ml_collections import config_dict


def get_config(arg=""):
  """The config; `arg` "tiny" makes a run on tiny random weights."""
  c = config_dict.ConfigDict()
  c.job = "online"
  c.world = "images"
  c.tiny = ""  # "sd3" or "flux": random weights instead of the paths below
  c.seed = 0
  # data, fsdp, tensor; -1 = all devices that are left. Every device holds a
  # part of the weights, of which the judge alone has 16 GB.
  c.mesh = (1, -1, 1)
  c.steps = 1000
  c.model = {
      "folder": "models/stable-diffusion-3.5-medium",  # of diffusers
      "size": 512,
      "dtype": "bfloat16",  # of weights and activations; adapters are float32
      "attention": "auto",
      "distilled_guidance": config_dict.placeholder(float),  # FLUX alone
  }
  c.text = {
      "cache": "cache/sd35",  # encoded prompts, filled at the start
      "t5_tokens": 256,
      "dtype": "bfloat16",
      "batch": 8,
      "too_long": "cut",  # by each encoder, as diffusers does, or "refuse"
  }
  c.lora = {
      "rank": 32,
      "alpha": 64.0,
      "targets": (r".*block(s)?/(image|text)2?_(q|k|v|out)",),
  }
  c.remat = True
  c.checkpoint = {"every": 20, "keep_last": 2}
  c.profile_steps = ()  # (first, end): iterations whose trace is written

  c.prompts = {
      "file": "prompts/train.txt",  # a prompt a line, or .jsonl with "prompt"
      "count": 2048,  # its first ones
      "held_out": "prompts/held_out.txt",
      "per_step": 16,
  }
  c.rollout = {
      "group": 24,  # images a prompt
      "steps": 6,
      "guidance": 4.5,
      "chunk": 96,  # images a network call, as many as in an optimizer step
      "decode_chunk": 48,
      "window": 5,  # every step but the last is stochastic and trained
      "window_range": (0, 5),
      "window_moves": "random",
      "window_every": 25,
      "visited": 0,
      "last_step": "ode",
      "shared_noise": False,
      "splits": (),
      "attention_blocks": (),  # of the embedded world alone
  }
  c.schedule = {"name": "sd3", "shift": 3.0}
  c.transition = {"name": "flow_sde", "noise_level": 0.7}
  c.log_prob = "gaussian"
  c.rewards = {
      "qwen_score": {
          "folder": "models/Qwen2.5-VL-7B-Instruct",
          "weights": "runs/spatial_score/spatial_score.safetensors",
          "dtype": "bfloat16",
          "batch": 48,  # images a call
      }
  }
  c.aggregate = {"name": "weighted_sum", "weights": {"qwen_score": 1.0}}
  c.select = {"name": "topk_bottomk", "k": 6}
  c.advantage = {"name": "group_z", "eps": 1e-4}
  c.credit = {"name": "uniform"}
  c.objective = {"name": "ppo", "clip_range": 1e-4, "adv_clip": 5.0}
  c.anchor = {"name": "kl_published"}
  c.refresh = {"name": "fixed"}
  c.behaviour = {"name": "current"}
  c.train = {
      "updates": 2,
      "microbatch": 0,  # images a gradient, of which steps sum up; 0: all
      "anchor_weight": 0.01,
      "ema_decay": 0.9,
      "ema_every": 8,
  }
  c.optimizer = {
      "learning_rate": 3e-4,
      "schedule": "constant",
      "warmup": 1,
      "b2": 0.999,
      "weight_decay": 1e-4,
      "max_norm": 1.0,
  }
  c.eval = {
      "every": 20,
      "prompts": 256,  # the first ones of prompts.held_out
      "images": 1,  # of each
      "quick_prompts": 48,
      "batch": 48,
      "steps": 40,
      "schedule": {"name": "sd3", "shift": 3.0},
      "guidance": 4.5,
  }
  if arg == "tiny":
    shrink(c, "sd3")
  elif arg:
    raise ValueError(f"config argument is {arg!r}; allowed is 'tiny'.")
  return c


def shrink(c, tiny):
  """Makes the run one of two iterations on random weights, in place."""
  c.tiny, c.steps = tiny, 2
  c.model.update({"size": 16, "dtype": "float32", "attention": "xla"})
  c.text.update({"t5_tokens": 32, "dtype": "float32"})
  c.lora.rank = 2
  c.prompts.update({"count": 8, "per_step": 2})
  c.rollout.update({"group": 4, "chunk": 4, "decode_chunk": 4, "steps": 3})
  c.rollout.update({"window": 2, "window_range": (0, 2)})
  c.rewards.qwen_score.update({"dtype": "float32", "batch": 4})
  c.select.k = 1
  c.train.updates = 1
  c.train.ema_every = 1
  c.eval.update({
      "every": 2, "prompts": 4, "quick_prompts": 4, "batch": 4, "steps": 2
  })
  c.checkpoint.every = 1
