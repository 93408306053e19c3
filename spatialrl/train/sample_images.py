"""Job `sample` on real backbones: a prompt file to folders of images.

The layout is the one that GenEval's scorer reads: `images/00000/` holds
`metadata.jsonl`, the record of the prompt, and `samples/0000.png` and so on.
"""

import io
import json

import jax
import numpy as np
from PIL import Image

from spatialrl.data import prompts
from spatialrl.io import assets
from spatialrl.io import workdir as workdirs
from spatialrl.io.plots import write_whole
from spatialrl.io.progress import progress
from spatialrl.models.build import load_trained
from spatialrl.parallel import distributed, partition
from spatialrl.train import backbone, tiny
from spatialrl.train.run import pause_stateless
from spatialrl.train.sampling import Sampler


def run(config, workdir, mesh):
  """Draws what is not there yet; started again, it goes on there.

  An image depends on the seed and its place alone, so a run that was killed
  leaves the same images as one that was not.

  Raises:
    ValueError: the workdir has images of other prompts or weights.
  """
  with distributed.in_turn():
    config = tiny.prepare(config, workdir)
  each, batch = config.eval.images, config.eval.batch
  if each < 1:
    raise ValueError(f"eval.images is {each}; it must be at least 1.")
  records = prompts.read_records(config.prompts.file)
  texts = [record["prompt"] for record in records]
  workdir = workdirs.check(workdir, config)
  labels = labels_of(workdir, config, records)
  check_labels(workdir, labels)
  opened = backbone.load(config, mesh, texts)
  policy, params = opened.policy, opened.params
  trained = load_trained(config.trained, policy, params)
  trained = partition.place(mesh, policy.family, trained)
  workdirs.prepare(workdir, config)
  files = [_folder(workdir, i) / "samples" / f"{j:04}.png"
           for i in range(len(records)) for j in range(each)]
  # Others than process 0 may look when it has written already.
  absent = np.array([not file.exists() for file in files])
  todo = np.flatnonzero(distributed.from_first(absent))
  first = jax.process_index() == 0
  if first:
    for file, text in labels.items():
      write_whole(file, text.encode())
  sampler = Sampler(policy, opened.read, mesh, config.eval)
  for start in progress(range(0, len(todo), batch), "sample"):
    rows = todo[start : start + batch]
    images = sampler(
        params, trained, [texts[i // each] for i in rows], config.seed, rows,
        pause_stateless,
    )
    for i, image in zip(rows, images, strict=True):
      png = io.BytesIO()
      Image.fromarray(image).save(png, format="PNG")
      if first:
        write_whole(files[i], png.getvalue())
  if not first:
    return
  workdirs.write_json(
      workdir / "summary.json",
      {
          "prompts": len(records),
          "images": len(files),
          "drawn_now": len(todo),
          "config": config.to_dict(),
      },
  )
  print(f"{len(files)} images in {workdir / 'images'}", flush=True)


def labels_of(workdir, config, records):
  """What the images are of: path -> text of the files that say it.

  Args:
    workdir: pathlib.Path of the run.
    config: field `trained`.
    records: list of dict, of the prompt file.
  """
  labels = {
      _folder(workdir, i) / "metadata.jsonl": json.dumps(record) + "\n"
      for i, record in enumerate(records)
  }
  if config.trained:
    digest = assets.digest(config.trained)
    labels[workdir / "trained.sha256"] = digest + "\n"
  return labels


def check_labels(workdir, labels):
  """Raises ValueError where there are images of something else.

  Args:
    workdir: pathlib.Path of the run.
    labels: as `labels_of` gives them.
  """
  for file in (*labels, *workdir.glob("images/*/metadata.jsonl")):
    text = labels.get(file, "")
    if file.exists() and (before := file.read_text()) != text:
      raise ValueError(
          f"{file} is {before[:80]!r} and now would be {text[:80]!r}: the"
          " images there are of other prompts or weights; use another workdir."
      )


def _folder(workdir, i):
  return workdir / "images" / f"{i:05}"
