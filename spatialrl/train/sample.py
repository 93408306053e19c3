"""Job `sample`: prompts in, PNGs out."""

import io
import json

import jax
from PIL import Image

from spatialrl.data import scenes
from spatialrl.data.prompts import Tokens
from spatialrl.io.plots import write_whole
from spatialrl.io.workdir import prepare
from spatialrl.models.build import load_policy, load_trained
from spatialrl.parallel import partition
from spatialrl.scenes import grammar
from spatialrl.train import sample_images
from spatialrl.train.configs import world_of
from spatialrl.train.run import pause_stateless
from spatialrl.train.sampling import Sampler


def run(config, workdir, mesh):
  """Writes one `NNNN.png` an image and `prompts.jsonl` in the workdir."""
  if world_of(config) == "images":
    sample_images.run(config, workdir, mesh)
    return
  prompts = list(config.sample.prompts)
  if not prompts:
    prompts = scenes.prompts(
        config.seed, config.sample.count,
        relations=tuple(config.prompts.relations), held_out=True,
    )
  for prompt in prompts:
    grammar.parse(prompt)
  policy, params = load_policy(config.init, config.lora)
  trained = load_trained(config.trained, policy, params, config.init)
  workdir = prepare(workdir, config)
  params, trained = partition.place(mesh, policy.family, (params, trained))
  read = Tokens(config.eval.max_tokens)
  sampler = Sampler(policy, read, mesh, config.eval)
  repeated = [p for p in prompts for _ in range(config.eval.images)]
  images = sampler(
      params, trained, repeated, config.seed, pause=pause_stateless
  )
  if jax.process_index() != 0:
    return
  scale = max(1, config.sample.pixels // policy.size)
  lines = []
  for i, (prompt, image) in enumerate(zip(repeated, images, strict=True)):
    picture, png = Image.fromarray(image), io.BytesIO()
    picture.resize(
        (policy.size * scale,) * 2, Image.Resampling.NEAREST
    ).save(png, format="PNG")
    write_whole(workdir / f"{i:04}.png", png.getvalue())
    lines.append(json.dumps({"file": f"{i:04}.png", "prompt": prompt}) + "\n")
  write_whole(workdir / "prompts.jsonl", "".join(lines).encode())
  print(f"{len(repeated)} images in {workdir}", flush=True)
