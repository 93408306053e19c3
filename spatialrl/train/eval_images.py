"""Job `eval` on real backbones: what all judges say of a prompt file's images.
"""

import csv
import io
import time

import jax

from spatialrl.data.prompts import read_prompts
from spatialrl.io import plots
from spatialrl.io.plots import write_whole
from spatialrl.io.report import FOLDER, Section, write_report
from spatialrl.io.workdir import prepare, write_json
from spatialrl.models.build import load_trained
from spatialrl.parallel import distributed, partition
from spatialrl.rewards.judges import check_prompts, close_judges, make_judges
from spatialrl.train import backbone, reports, tiny
from spatialrl.train.finish_images import Evaluation
from spatialrl.train.run import pause_stateless


def run(config, workdir, mesh):
  """Writes `scores.csv`, `summary.json` and `report.html` in the workdir.

  The noise of an image depends on its place alone, so a base and what was
  trained on it, or two checkpoints, are compared on the same noise.

  Args:
    config: of an `eval` run of the world "images".
    workdir: of the run.
    mesh: the mesh in use.

  Returns:
    The dict written to `summary.json`; `final` has one mean a judge.
  """
  began = time.perf_counter()
  with distributed.in_turn():
    config = tiny.prepare(config, workdir)
  if not config.rewards:
    raise ValueError("rewards is empty; an evaluation needs at least a judge.")
  if config.eval.images < 1:
    raise ValueError(
        f"eval.images is {config.eval.images}; it must be at least 1."
    )
  prompts = read_prompts(config.prompts.file)
  check_prompts(config.rewards, prompts)
  opened = backbone.load(config, mesh, prompts)
  policy, params = opened.policy, opened.params
  trained = load_trained(config.trained, policy, params)
  trained = partition.place(mesh, policy.family, trained)
  workdir = prepare(workdir, config)
  judges = make_judges(config.rewards, mesh)
  evaluation = Evaluation(config, mesh, policy, opened.read, judges, prompts)
  try:
    numbers, images, scores = evaluation.full(
        params, trained, pause_stateless
    )
  finally:
    close_judges(judges)
  summary = {
      "final": numbers,
      "prompts": len(prompts),
      "seconds": time.perf_counter() - began,
      "config": config.to_dict(),
  }
  if jax.process_index() != 0:
    return summary
  repeated = evaluation.repeated()
  write_whole(workdir / "scores.csv", _table(repeated, scores).encode())
  write_json(workdir / "summary.json", summary)
  _report(workdir, summary, repeated, images, scores)
  print("  ".join(f"{n} {value:.4g}" for n, value in numbers.items()))
  return summary


def _table(prompts, scores):
  """An image a line: its prompt, then every score, -inf where it failed."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["prompt", *scores])
  writer.writerows(zip(prompts, *scores.values(), strict=True))
  return text.getvalue()


def _report(workdir, summary, prompts, images, scores):
  picked = reports.spread(prompts)
  said = [
      [f"{name} {values[i]:.2f}" for name, values in scores.items()]
      for i in picked
  ]
  plots.gallery(
      workdir / FOLDER / "gallery.png",
      {"": images[picked]},
      ["\n".join([prompts[i], *s]) for i, s in zip(picked, said, strict=True)],
      {},
  )
  write_report(
      workdir,
      title="Evaluation",
      summary={n: (None, value) for n, value in summary["final"].items()},
      settings=summary["config"],
      sections=[
          Section("Images", "Evenly over the prompt file.", "gallery.png")
      ],
  )
