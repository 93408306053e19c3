"""Scores a policy on held-out prompts.

  python -m spatialrl.main --config configs/scenes_eval.py --workdir runs/eval \
    --config.trained runs/quickstart/trained.safetensors

Without `trained` it scores the packaged base. `:sample` draws PNGs instead:

  python -m spatialrl.main --config configs/scenes_eval.py:sample \
    --workdir runs/sample \
    --config.sample.prompts "('a red circle above a blue square',)"
"""

from ml_collections import config_dict


def get_config(arg=""):
  """The config; `arg` is "", "sample" or "tiny"."""
  c = config_dict.ConfigDict()
  c.job = "sample" if arg == "sample" else "eval"
  c.seed = 0
  c.mesh = (-1, 1, 1)
  c.init = "policy.safetensors"
  c.trained = ""  # path of a run's trained.safetensors
  c.lora = {"rank": 0, "alpha": 64.0, "targets": (".*",), "soft_tokens": 0}
  c.prompts = {"relations": (1,)}
  c.rewards = {"spatial_score": {"weights": "reward.safetensors"}}
  c.eval = {
      "prompts": 512,
      "images": 4,
      "quick_prompts": 128,
      "pairs": 2000,
      "batch": 128,
      "steps": 8,
      "schedule": {"name": "shifted", "shift": 3.0},
      "guidance": 1.0,
      "max_tokens": 6,
  }
  c.sample = {
      "prompts": ("",)[:0],  # drawn from the grammar when empty
      "count": 8,
      "pixels": 256,  # side of the PNGs
  }
  if arg == "sample":
    c.eval.batch = 32
  elif arg == "tiny":
    c.eval.update({"prompts": 4, "images": 2, "pairs": 8, "batch": 8})
    c.eval.quick_prompts = 4
  elif arg:
    raise ValueError(
        f"config argument is {arg!r}; allowed are 'sample' and 'tiny'."
    )
  return c
