"""SpatialScore on Qwen2.5-VL teaches FLUX.1-dev where things go.

  python -m spatialrl.main --config configs/flux_spatialscore_grpo.py \
    --workdir runs/flux --config.model.folder=DIR \
    --config.rewards.qwen_score.folder=DIR \
    --config.rewards.qwen_score.weights=FILE --config.prompts.file=FILE \
    --config.prompts.held_out=FILE

The run of sd35_spatialscore_grpo.py on the backbone of the paper: FLUX's own
schedule at 512 pixels, the guidance that it was distilled with and none
besides. Noise level and adapted layers are Flow-GRPO's for FLUX
(arXiv:2505.05470). `:tiny` runs the whole job on random weights;
experiments/plan says what the rest takes of a TPU slice.
"""

import pathlib

from spatialrl.train.configs import load_config

_SD35 = pathlib.Path(__file__).with_name("sd35_spatialscore_grpo.py")


def get_config(arg=""):
  """The config; `arg` "tiny" makes a run on tiny random weights."""
  c = load_config(_SD35, arg)
  c.model.folder = "models/FLUX.1-dev"
  c.model.distilled_guidance = 3.5
  c.text.cache = "cache/flux"
  c.lora.targets = (
      "double_blocks/(image|text)_(q|k|v|out)",
      "double_blocks/(image|text)_ff/(up|down)",
      "single_blocks/(q|k|v)",
  )
  c.rollout.guidance = c.eval.guidance = 1.0
  c.schedule = {"name": "flux", "tokens": 1024}  # of 512 x 512 pixels
  c.eval.schedule = {"name": "flux", "tokens": 1024}
  c.transition.noise_level = 0.9
  if arg == "tiny":
    c.tiny = "flux"
  else:
    c.eval.steps = 28
    # Of 16 devices, two images a call on each, and eight in the decoder:
    # docs/plan.md says why.
    c.rollout.update({"chunk": 32, "decode_chunk": 128})
    c.train.microbatch = 32
  return c
