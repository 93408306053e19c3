"""Job `sample` on real backbones: a prompt file to folders of images.

The layout is the one that GenEval's scorer reads: `images/00000/` holds
`metadata.jsonl`, the record of the prompt, and `samples/0000.png` and so on.
"""

import io
import json

import numpy as np
from PIL import Image

from spatialrl.data import prompts
from spatialrl.io.plots import write_whole
from spatialrl.io.progress import progress
from spatialrl.io.workdir import prepare, write_json
from spatialrl.models.build import load_trained
from spatialrl.parallel import partition
from spatialrl.train import backbone, tiny
from spatialrl.train.sampling import Sampler


def run(config, workdir, mesh):
  """Draws what is not there yet; started again, it goes on there.

  An image depends on the seed and its place alone, so a run that was killed
  leaves the same images as one that was not.
  """
  config = tiny.prepare(config, workdir)
  each, batch = config.eval.images, config.eval.batch
  if each < 1:
    raise ValueError(f"eval.images is {each}; it must be at least 1.")
  records = prompts.read_records(config.prompts.file)
  texts = [record["prompt"] for record in records]
  opened = backbone.load(config, mesh, texts)
  policy, params = opened.policy, opened.params
  trained = load_trained(config.trained, policy, params)
  trained = partition.place(mesh, policy.family, trained)
  workdir = prepare(workdir, config)
  folders = [workdir / "images" / f"{i:05}" for i in range(len(records))]
  files = [folder / "samples" / f"{j:04}.png"
           for folder in folders for j in range(each)]
  for folder, record in zip(folders, records, strict=True):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record) + "\n"
    write_whole(folder / "metadata.jsonl", text.encode())
  todo = [i for i, file in enumerate(files) if not file.exists()]
  sampler = Sampler(policy, opened.read, mesh, config.eval)
  for start in progress(range(0, len(todo), batch), "sample"):
    rows = np.asarray(todo[start : start + batch])
    images = sampler(
        params, trained, [texts[i // each] for i in rows], config.seed, rows
    )
    for i, image in zip(rows, images, strict=True):
      png = io.BytesIO()
      Image.fromarray(image).save(png, format="PNG")
      write_whole(files[i], png.getvalue())
  write_json(
      workdir / "summary.json",
      {
          "prompts": len(records),
          "images": len(files),
          "drawn_now": len(todo),
          "config": config.to_dict(),
      },
  )
  print(f"{len(files)} images in {workdir / 'images'}", flush=True)
