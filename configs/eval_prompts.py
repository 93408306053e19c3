"""Images of a prompt file, in the folders that GenEval's scorer reads.

  python -m spatialrl.main --config configs/eval_prompts.py \
    --workdir runs/geneval --config.model.folder=DIR \
    --config.prompts.file=evaluation_metadata.jsonl \
    --config.trained=runs/sd35/trained.safetensors

Four images a prompt of SD3.5-Medium with what a run trained, or of the base
with `trained` empty; `:flux` draws with FLUX.1-dev. Started again, it draws
what is missing. Then `evaluate_images.py runs/geneval/images` of GenEval
scores them. `:tiny` needs no files.
"""

import pathlib

from spatialrl.train.configs import load_config


def get_config(arg=""):
  """The config; `arg` is "", "flux" or "tiny"."""
  if arg not in ("", "flux", "tiny"):
    raise ValueError(
        f"config argument is {arg!r}; allowed are 'flux' and 'tiny'."
    )
  name = "flux" if arg == "flux" else "sd35"
  path = pathlib.Path(__file__).with_name(f"{name}_spatialscore_grpo.py")
  online = load_config(path, "tiny" if arg == "tiny" else "")
  c = type(online)()
  for field in (
      "world", "tiny", "seed", "mesh", "model", "text", "lora", "remat", "eval"
  ):
    c[field] = online[field]
  c.job = "sample"
  c.trained = ""  # trained.safetensors of a run whose adapters `lora` says
  c.prompts = {"file": "geneval/evaluation_metadata.jsonl"}
  c.text.cache += "_eval"
  c.eval.images = 2 if arg == "tiny" else 4
  for field in ("every", "prompts", "quick_prompts"):  # of training
    del c.eval[field]
  return c
