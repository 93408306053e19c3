"""What the attention map costs, in rollout and in update.

  python -m experiments.star.overhead

Runs an iteration with the map and one without in turn, in one process, on the
quickstart's batch, and writes `overhead.json`: seconds of both by phase, and
the median of the ratios of neighbours.
"""

import argparse
import json
import pathlib

import jax
import numpy as np

from experiments.star.config import get_config
from spatialrl.data import scenes
from spatialrl.io.workdir import write_json
from spatialrl.models.build import load_policy
from spatialrl.parallel.mesh import make_mesh
from spatialrl.platform import prepare_process
from spatialrl.rewards.judges import make_judges
from spatialrl.train import loop as loops
from spatialrl.train import online

_ITERATIONS = 30
_PHASES = ("rollout", "update")


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
      "--out", type=pathlib.Path,
      default=pathlib.Path(__file__).with_name("overhead.json"),
      help="file of the result (default: %(default)s)",
  )
  out = parser.parse_args().out
  prepare_process()
  mesh = make_mesh((-1, 1, 1))
  with jax.set_mesh(mesh):
    runs = {name: _Run(name, mesh) for name in ("uniform", "star")}
    rows = {name: [] for name in runs}
    for step in range(_ITERATIONS + 1):
      # Which of the two goes first alternates as well.
      for name in sorted(runs, reverse=bool(step % 2)):
        rows[name].append(runs[name].iterate(step))
  result = {"iterations": _ITERATIONS, "images": runs["star"].images}
  for phase in _PHASES:
    seconds = {  # the first one compiles
        name: np.array([r[f"{phase}_seconds"] for r in rows[name][1:]])
        for name in rows
    }
    ratio = seconds["star"] / seconds["uniform"]
    result[phase] = {
        name: float(np.median(s)) for name, s in seconds.items()
    } | {
        "ratio": float(np.median(ratio)),
        "quartiles": [float(q) for q in np.quantile(ratio, (0.25, 0.75))],
    }
  write_json(out, result)
  print(json.dumps(result, indent=2))


class _Run:
  """A loop and its state; `uniform` records no attention at all."""

  def __init__(self, name, mesh):
    config = get_config(name)
    if name == "uniform":
      config.rollout.attention_blocks = ()
      config.credit = {"name": "uniform"}
    policy, params = load_policy(config.init)
    self._config = config
    self._loop = loops.Loop(
        config, mesh, policy, make_judges(config.rewards, mesh)
    )
    self._base = jax.device_put(params)
    self._state = self._loop.init(self._base)
    self._prompts = scenes.prompts(
        config.seed, config.prompts.count,
        relations=tuple(config.prompts.relations),
    )
    self.images = config.prompts.per_step * config.rollout.group

  def iterate(self, step):
    chosen, labels = online.choose_prompts(self._prompts, self._config, step)
    self._state, values = self._loop.iterate(
        self._base, self._state, chosen, labels, step
    )
    return values


if __name__ == "__main__":
  main()
