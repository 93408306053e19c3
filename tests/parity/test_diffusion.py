"""What we train of SD3.5 and FLUX, exported and loaded by diffusers."""

import dataclasses

import jax
import numpy as np
import pytest

from spatialrl.convert import adapters, folder, lora, stream
from spatialrl.models.diffusion import DiffusionPolicy
from spatialrl.models.lora import LoRAConfig
from spatialrl.train import tiny

TARGETS = {
  "sd3": (r".*block(s)?/(image|text)2?_(q|k|v|out)",),
  "flux": (
    "double_blocks/(image|text)_(q|k|v|out)",
    "double_blocks/(image|text)_ff/(up|down)",
    "single_blocks/(q|k|v)",
  ),
}
ADAPTED = {"sd3": 3 * 8 + 4 - 1, "flux": 12 + 2 * 3}  # dense layers


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_trained_adapters_in_diffusers(family, tmp_path):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  pytest.importorskip("peft")
  path = tiny.write_pipeline(tmp_path / "model", family) / "transformer"
  whole = folder.open_model(path)
  coder, _ = stream.load(tmp_path / "model/vae")
  policy = DiffusionPolicy(
    size=16,
    network=dataclasses.replace(whole.sizes, remat=False),
    autoencoder=coder,
    distilled_guidance=3.5 if family == "flux" else None,
    lora=LoRAConfig(2, 6.0, TARGETS[family]),
  )
  pooled = whole.sizes.pooled_width
  empty = {"text": normal(1, 1, 6, 16), "pooled": normal(2, 1, pooled)}
  params = {"network": stream.load_whole(whole), "empty": empty}
  fresh = jax.jit(policy.init_trainable)(jax.random.key(0), params)
  trained = jax.tree.map(lambda leaf: leaf + 0.1, fresh)
  x, t = normal(3, 2, 8, 8, 4), np.float32([0.75, 0.25])
  text, vector = normal(4, 2, 6, 16), normal(5, 2, pooled)
  cond = policy.encode(params, text, vector)
  ours = jax.jit(policy.velocity)(params, trained, x, t, cond)
  pairs = adapters.from_tree(policy.lora, trained, whole)
  assert len(pairs) == ADAPTED[family]
  lora.write(tmp_path / "lora", "diffusers", pairs, whole)

  if family == "sd3":
    network = diffusers.SD3Transformer2DModel.from_pretrained(path)
    pipeline = diffusers.StableDiffusion3Pipeline(
      transformer=network, scheduler=None, vae=None, text_encoder=None,
      tokenizer=None, text_encoder_2=None, tokenizer_2=None,
      text_encoder_3=None, tokenizer_3=None,
    )
  else:
    network = diffusers.FluxTransformer2DModel.from_pretrained(path)
    pipeline = diffusers.FluxPipeline(
      transformer=network, scheduler=None, vae=None, text_encoder=None,
      tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )
  pipeline.load_lora_weights(str(tmp_path / "lora"))
  given = {
    "encoder_hidden_states": torch.tensor(text),
    "pooled_projections": torch.tensor(vector),
    "return_dict": False,
  }
  latents = torch.tensor(x.transpose(0, 3, 1, 2))
  with torch.no_grad():
    if family == "sd3":
      (out,) = network(
        hidden_states=latents, timestep=1000 * torch.tensor(t), **given
      )
    else:
      pack = diffusers.FluxPipeline._pack_latents(latents, 2, 4, 8, 8)
      places = diffusers.FluxPipeline._prepare_latent_image_ids
      (out,) = network(
        hidden_states=pack,
        timestep=torch.tensor(t),
        guidance=torch.full((2,), 3.5),
        img_ids=places(2, 4, 4, "cpu", torch.float32),
        txt_ids=torch.zeros(6, 3),
        **given,
      )
      out = diffusers.FluxPipeline._unpack_latents(out, 16, 16, 2)
  theirs = out.numpy().transpose(0, 2, 3, 1)
  difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
  print(f"{family}: {difference:.1e} of the largest value")
  assert difference < 5e-5
