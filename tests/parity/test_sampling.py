"""Twenty steps of our sampler against the pipelines of diffusers.

The stored latents come from `latents_of_diffusers` below, called with the
inputs that `inputs` draws, and saved by

  python -m tests.parity.test_sampling

with diffusers 0.42 and torch installed; where they are, the live test holds
the stored latents against them.
"""

import pathlib

import jax
import numpy as np
import pytest

from spatialrl.convert import flux, sd3
from spatialrl.flow import rollout, schedules, transition
from spatialrl.models.flux import Flux
from spatialrl.models.mmdit import MMDiT

STEPS, GUIDANCE = 20, 3.5
H, W, L = 8, 12, 6
MODELS = pathlib.Path(__file__).parent.parent / "golden" / "models"
FOLDERS = ["flux", "sd3_dual"]


def inputs(channels):
  """Noise, text and pooled text of two prompts and of the empty one."""
  rng = np.random.default_rng(4)
  shapes = (2, H, W, channels), (2, L, 24), (2, 20), (2, L, 24), (2, 20)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def latents_of_diffusers(folder):
  """What the pipeline of diffusers makes of `inputs`, [2, H, W, C]."""
  import torch
  from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
  )

  missing = dict.fromkeys(
    ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
  )
  size = {"height": 8 * H, "width": 8 * W}
  call = {"num_inference_steps": STEPS, "output_type": "latent", **size}
  if folder == "flux":
    pipeline = FluxPipeline(
      FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
      transformer=FluxTransformer2DModel.from_pretrained(MODELS / folder),
      **missing,
    )
    noise, text, pooled, _, _ = map(torch.tensor, inputs(4))
    noise = noise.permute(0, 3, 1, 2)
    packed = pipeline._pack_latents(noise, *noise.shape)
    out = pipeline(
      prompt_embeds=text,
      pooled_prompt_embeds=pooled,
      latents=packed,
      guidance_scale=GUIDANCE,
      **call,
    ).images
    out = pipeline._unpack_latents(out, 8 * H, 8 * W, 8)
  else:
    pipeline = StableDiffusion3Pipeline(
      scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
      transformer=SD3Transformer2DModel.from_pretrained(MODELS / folder),
      text_encoder_3=None,
      tokenizer_3=None,
      **missing,
    )
    noise, text, pooled, no_text, no_pooled = map(torch.tensor, inputs(16))
    out = pipeline(
      prompt_embeds=text,
      pooled_prompt_embeds=pooled,
      negative_prompt_embeds=no_text,
      negative_pooled_prompt_embeds=no_pooled,
      latents=noise.permute(0, 3, 1, 2),
      guidance_scale=GUIDANCE,
      **call,
    ).images
  return out.permute(0, 2, 3, 1).numpy()


def ours(folder, load_model):
  """The same from our network, schedule, transition and rollout."""
  if folder == "flux":
    sizes, params = load_model(folder, flux)
    noise, *text = inputs(4)
    times = schedules.flux(STEPS, tokens=H * W // 4)
    scale = np.full(2, GUIDANCE, np.float32)

    def velocity(x, t):
      network = Flux(sizes)
      return network.apply({"params": params}, x, t, *text[:2], guidance=scale)

  else:
    sizes, params = load_model(folder, sd3)
    noise, *text = inputs(16)
    times = schedules.sd3(STEPS)
    velocity = rollout.guided(
      lambda x, t, cond: MMDiT(sizes).apply({"params": params}, x, t, *cond),
      tuple(text[:2]),
      tuple(text[2:]),
      GUIDANCE,
    )

  @jax.jit
  def sample(noise):
    return rollout.rollout(
      velocity,
      noise,
      times,
      jax.random.key(0),
      np.arange(2),
      transition=transition.ode,
      log_prob=None,
      window_start=0,
      window=0,
      last_step="ode",
    ).final

  return sample(noise)


@pytest.mark.parametrize("folder", FOLDERS)
def test_sampling_ends_where_the_pipeline_does(folder, golden, load_model):
  stored = golden(f"models/{folder}/sampling.npz")["latents"]
  np.testing.assert_allclose(ours(folder, load_model), stored, atol=1e-4)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_stored_latents_are_the_pipelines(folder, golden):
  pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  stored = golden(f"models/{folder}/sampling.npz")["latents"]
  np.testing.assert_allclose(latents_of_diffusers(folder), stored, atol=2e-5)


if __name__ == "__main__":
  for name in FOLDERS:
    np.savez_compressed(
      MODELS / name / "sampling.npz", latents=latents_of_diffusers(name)
    )
