"""What drawing ahead saves while a slow judge scores.

  python -m experiments.overlap.measure

The quickstart's batch with a judge that takes as long as a rollout and none of
this machine's processors, as one behind HTTP does. Blocks of iterations with
behaviour "current" and "previous" in turn, in one process; writes
`results.json`: seconds of an iteration of both, their ratio by block, and the
ratio that is left when nothing but the shorter of rollout and judge is hidden.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np

from spatialrl.data import scenes
from spatialrl.io.workdir import write_json
from spatialrl.models.build import load_policy
from spatialrl.parallel.mesh import make_mesh
from spatialrl.platform import prepare_process
from spatialrl.records import Signals
from spatialrl.train import loop as loops
from spatialrl.train import online
from spatialrl.train.configs import load_config

_BLOCKS, _ITERATIONS = 6, 6


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
      "--out", type=pathlib.Path,
      default=pathlib.Path(__file__).with_name("results.json"),
      help="file of the result (default: %(default)s)",
  )
  out = parser.parse_args().out
  prepare_process()
  mesh = make_mesh((-1, 1, 1))
  with jax.set_mesh(mesh):
    judge = Slow()
    runs = {name: _Run(name, mesh, judge) for name in ("current", "previous")}
    for each in runs.values():
      each.block()  # compiles
    judge.seconds = runs["current"].block()["rollout"]
    blocks = [
        {name: runs[name].block() for name in sorted(runs, reverse=k % 2 > 0)}
        for k in range(_BLOCKS)
    ]
  ratios = [b["previous"]["all"] / b["current"]["all"] for b in blocks]
  middle = {
      part: float(np.median([b["current"][part] for b in blocks]))
      for part in ("all", "rollout")
  }
  hidden = min(judge.seconds, middle["rollout"])
  result = {
      "blocks": blocks,
      "judge_seconds": judge.seconds,
      "ratio": float(np.median(ratios)),
      "range": [min(ratios), max(ratios)],
      "floor": 1 - hidden / middle["all"],
  }
  write_json(out, result)
  print(json.dumps(result, indent=2))


class Slow:
  """A judge that keeps its caller waiting, and nothing else busy."""

  seconds = 0.0

  def __call__(self, images, prompts):
    del prompts
    scores = jax.device_get(images).mean((1, 2, 3))
    time.sleep(self.seconds)
    return Signals(scalar=scores)

  def compilations(self):
    return 1


class _Run:
  """A loop and its state."""

  def __init__(self, behaviour, mesh, judge):
    config = load_config(pathlib.Path("configs/quickstart.py"))
    config.behaviour.name = behaviour
    config.aggregate = {"name": "weighted_sum", "weights": {"slow": 1.0}}
    policy, params = load_policy(config.init)
    self._config, self._step = config, 0
    self._loop = loops.Loop(config, mesh, policy, {"slow": judge})
    self._base = jax.device_put(params)
    self._state = self._loop.init(self._base)
    self._prompts = scenes.prompts(
        config.seed, config.prompts.count,
        relations=tuple(config.prompts.relations),
    )

  def block(self):
    """Seconds of an iteration, of so many that nothing is left over."""
    began, rollout = time.perf_counter(), 0.0
    for k in range(_ITERATIONS):
      chosen, labels = self._choose(self._step)
      upcoming, _ = self._choose(self._step + 1)
      self._state, values = self._loop.iterate(
          self._base, self._state, chosen, labels, self._step,
          upcoming=upcoming if k + 1 < _ITERATIONS else None,
      )
      self._step += 1
      rollout += values["rollout_seconds"]
    seconds = time.perf_counter() - began
    return {"all": seconds / _ITERATIONS, "rollout": rollout / _ITERATIONS}

  def _choose(self, step):
    return online.choose_prompts(self._prompts, self._config, step)


if __name__ == "__main__":
  main()
