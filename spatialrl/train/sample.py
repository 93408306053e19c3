"""Job `sample`: prompts in, PNGs out."""

import json

from PIL import Image

from spatialrl.data import scenes
from spatialrl.data.prompts import Tokens
from spatialrl.io.workdir import prepare
from spatialrl.models.build import load_policy, load_trained
from spatialrl.parallel import partition
from spatialrl.scenes import grammar
from spatialrl.train import sample_images
from spatialrl.train.configs import world_of
from spatialrl.train.sampling import Sampler


def run(config, workdir, mesh):
  """Writes one `NNNN.png` an image and `prompts.jsonl` in the workdir."""
  if world_of(config) == "images":
    return sample_images.run(config, workdir, mesh)
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
  images = sampler(params, trained, repeated, config.seed)
  scale = max(1, config.sample.pixels // policy.size)
  with (workdir / "prompts.jsonl").open("w", encoding="utf-8") as file:
    for i, (prompt, image) in enumerate(zip(repeated, images, strict=True)):
      picture = Image.fromarray(image).resize(
          (policy.size * scale,) * 2, Image.Resampling.NEAREST
      )
      picture.save(workdir / f"{i:04}.png")
      file.write(json.dumps({"file": f"{i:04}.png", "prompt": prompt}) + "\n")
  print(f"{len(repeated)} images in {workdir}", flush=True)
