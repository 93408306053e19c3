"""SpatialScore on the embedded world, from perfect-versus-perturbed pairs.

  python -m spatialrl.main --config configs/scenes_reward.py:captions \
    --workdir runs/match
  python -m spatialrl.main --config configs/scenes_reward.py --workdir runs/rm
  python -m spatialrl.main --config configs/scenes_reward.py:things \
    --workdir runs/rt

The first command teaches the backbone which caption an image has, as a
vision-language model knows it beforehand; it is also the control. The second
goes on from there with preference pairs. The third reminds the model of things:
half of its pairs differ in a colour or a shape, since a policy that is trained
on relations alone lets the shapes go. Its result is the packaged
`reward.safetensors`.
"""

from ml_collections import config_dict


def get_config(arg=""):
  """The config; `arg` is "", "captions" (the control), "things" or "tiny"."""
  c = config_dict.ConfigDict()
  c.job = "reward"
  c.seed = 0
  c.mesh = (-1, 1, 1)
  c.init = "runs/match/reward.safetensors"  # "" for random weights
  c.steps = 4000
  c.batch = 64  # comparisons
  c.ema_decay = 0.999
  c.loss = "gaussian_bradley_terry"
  c.log_every = 50
  c.eval_every = 500
  c.checkpoint = {"every": 500, "keep_last": 2}
  c.profile_steps = ()  # (first, end): iterations whose trace is written

  c.data = {
      "kind": "pairs",
      "relations": (1, 1, 2, 3),  # of the prompts of a batch, in turn
      "perturbed": (1, 3),  # relations that the loser breaks
      "things_share": 0.0,  # of pairs that differ in a thing, not a relation
      "noise": 0.3,  # largest std of the noise added to an image in [-1, 1]
      "wrong_share": 0.0,  # of captions, for kind "captions"
  }
  c.reward = {
      "size": 32,
      "patch": 8,
      "max_tokens": 27,
      "width": 96,
      "depth": 3,
      "heads": 6,
  }
  c.optimizer = {
      "learning_rate": 1e-3,
      "schedule": "cosine",
      "warmup": 200,
      "b2": 0.99,
      "weight_decay": 0.01,
      "max_norm": 1.0,
  }
  c.eval = {"pairs": 2000, "batch": 250}
  if arg == "captions":
    c.init, c.steps = "", 600
    c.data.kind = "captions"
  elif arg == "things":
    c.init = "runs/rm/reward.safetensors"
    c.data.things_share = 0.5
  elif arg == "tiny":
    c.init = ""
    c.steps, c.batch, c.log_every, c.eval_every = 4, 8, 2, 4
    c.reward.update({"size": 16, "width": 32, "depth": 2, "heads": 2})
    c.eval.update({"pairs": 16, "batch": 16})
    c.checkpoint.every = 2
  elif arg:
    raise ValueError(
        f"config argument is {arg!r}; allowed are 'captions', 'things',"
        " 'tiny'."
    )
  return c
