"""CLIPScore and PickScore of a policy on a prompt file.

  python -m spatialrl.main --config configs/eval_scores.py \
    --workdir runs/scores --config.model.folder=DIR \
    --config.prompts.file=FILE --config.rewards.clip_score.folder=DIR \
    --config.rewards.pick_score.folder=DIR \
    --config.trained=runs/sd35/trained.safetensors

Judges that trained nothing, so what they say of a run is not what it was told
to raise. SD3.5-Medium with what a run trained, or the base with `trained`
empty; `:flux` for FLUX.1-dev. Writes `scores.csv`, an image a line,
`summary.json` and `report.html`. `:tiny` needs no files.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` is "", "flux" or "tiny"."""
  path = pathlib.Path(__file__).with_name("eval_prompts.py")
  c = load_config(path, arg)
  c.job = "eval"
  judge = {
      "dtype": "float32" if arg == "tiny" else "bfloat16",
      "batch": c.eval.batch,  # images a call
  }
  c.rewards = {
      "clip_score": judge | {"folder": "models/clip-vit-base-patch32"},
      "pick_score": judge | {"folder": "models/PickScore_v1"},
  }
  return c
