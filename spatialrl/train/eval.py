"""Job `eval`: scores a checkpoint on held-out prompts."""

import time

import jax

from spatialrl.io.workdir import prepare, write_json
from spatialrl.models.build import load_policy, load_trained
from spatialrl.parallel import partition
from spatialrl.rewards.judges import close_judges, make_judges
from spatialrl.train import eval_images, reports
from spatialrl.train.configs import world_of
from spatialrl.train.finish import Evaluation
from spatialrl.train.run import pause_stateless


def run(config, workdir, mesh):
  """Writes `summary.json`, `report.html` and its gallery in the workdir."""
  if world_of(config) == "images":
    return eval_images.run(config, workdir, mesh)
  began = time.perf_counter()
  policy, params = load_policy(config.init, config.lora)
  trained = load_trained(config.trained, policy, params, config.init)
  workdir = prepare(workdir, config)
  params, trained = partition.place(mesh, policy.family, (params, trained))
  judges = make_judges(config.rewards, mesh)
  evaluation = Evaluation(config, mesh, policy, judges)
  try:
    numbers, images, judged = evaluation.full(
        params, trained, pause_stateless
    )
  finally:
    close_judges(judges)
  summary = {
      "final": numbers,
      "reward_pair_accuracy": evaluation.pair_accuracy(),
      "seconds": time.perf_counter() - began,
      "seed": config.seed,
      "config": config.to_dict(),
  }
  if jax.process_index() != 0:
    return summary
  write_json(workdir / "summary.json", summary)
  reports.evaluated(workdir, summary, evaluation.repeated(), images, judged)
  known = {name: value for name, value in numbers.items() if value is not None}
  print("  ".join(f"{name} {known[name]:.3f}" for name in known), flush=True)
  return summary
