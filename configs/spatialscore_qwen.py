"""The published SpatialScore: Qwen2.5-VL-7B trained on preference pairs.

  python -m spatialrl.main --config configs/spatialscore_qwen.py \
    --workdir runs/spatial_score --config.base=DIR \
    --config.data.folder=DIR --config.data.pairs=FILE.jsonl \
    --config.data.held_out=FILE.jsonl

Each line of a JSONL file is {"prompt": ..., "better": FILE, "worse": FILE},
with the names of two square images in `data.folder`. Every image is decoded
once before training starts. What is trained (adapters on the language model,
the row of the reward token, the head) is `spatial_score.safetensors`, which
the judge `qwen_score` takes. SpatialScore (arXiv:2602.24233) does not print
its rate, batch and rank; these are ours. `:tiny` needs no files.
"""

from ml_collections import config_dict


def get_config(arg=""):
  """The config; `arg` "tiny" makes a run on tiny random weights."""
  c = config_dict.ConfigDict()
  c.job = "reward"
  c.world = "images"
  c.tiny = ""
  c.seed = 0
  c.mesh = (-1, 1, 1)
  c.base = "models/Qwen2.5-VL-7B-Instruct"
  c.dtype = "bfloat16"  # of weights and activations of the base
  c.pixels = 504  # to which images are resized; 324 image tokens
  c.max_tokens = 512  # of image, template, prompt and reward token
  c.reward_token = 151665  # the first id that no text uses
  c.head = (1024, 16)
  c.lora = {
      "rank": 32, "alpha": 64.0, "targets": ("layers/(q|k|v|out|gate|up|down)",)
  }
  c.data = {
      "folder": "pairs/images",
      "pairs": "pairs/train.jsonl",
      "held_out": "pairs/held_out.jsonl",
  }
  c.loss = "gaussian_bradley_terry"
  c.steps = 2000
  c.batch = 32  # pairs
  c.ema_decay = 0.99
  c.log_every = 10
  c.eval_every = 200
  c.checkpoint = {"every": 200, "keep_last": 2}
  c.profile_steps = ()  # (first, end): iterations whose trace is written
  c.optimizer = {
      "learning_rate": 1e-4,
      "schedule": "cosine",
      "warmup": 50,
      "b2": 0.99,
      "weight_decay": 0.0,
      "max_norm": 1.0,
  }
  c.eval = {"batch": 32}
  if arg == "tiny":
    c.tiny, c.dtype = "sd3", "float32"
    c.pixels, c.max_tokens, c.reward_token, c.head = 56, 224, 270, (8,)
    c.lora.rank = 2
    c.steps, c.batch, c.log_every, c.eval_every = 2, 4, 1, 2
    c.checkpoint.every = 1
    c.eval.batch = 4
  elif arg:
    raise ValueError(f"config argument is {arg!r}; allowed is 'tiny'.")
  return c
