"""Rollout and LoRA-GRPO update of a small SD3, ours against torch.

  OMP_WAIT_POLICY=passive python -m experiments.throughput.against_torch \
    --repeats 5 --out experiments/throughput/results.json

The same weights, noise and shapes, in one process and by turns: our rollout and
our update as an online run compiles them, and the same loop written in torch
with the network of diffusers and the adapters of peft. Both must give the same
images, loss and gradient norm before anything is timed. Without the environment
variable torch's threads spin while they wait, which on a machine with other
work costs it up to five times the processor time.
"""

import argparse
import copy
import json
import time

import jax
import numpy as np
import torch

from experiments.throughput.measure import matmul_rate, policy_flops
from experiments.throughput.sides import (
  BATCH,
  LORA,
  SD3,
  STEPS,
  TEXT_TOKENS,
  WINDOW,
  Ours,
  Torch,
  make_config,
  make_network,
  to_ours,
)
from spatialrl.io.workdir import write_json
from spatialrl.platform import prepare_process

PHASES = ("rollout", "update")
THREADS = 2


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--out", required=True)
  args = parser.parse_args()
  prepare_process()
  torch.set_num_threads(THREADS)
  network = make_network()
  policy, params, lora = to_ours(network)
  config = make_config()
  ours = Ours(policy, params, lora, config)
  sides = {"ours": ours, "torch": Torch(network, ours, config)}
  differences = compare(**sides)
  result = measure(sides, args.repeats)
  result |= {
    "differences": differences,
    "parameters": sum(x.size for x in jax.tree.leaves(params)),
    "trained": sum(x.size for x in jax.tree.leaves(lora)),
  }
  result |= shares(result["ours"], gflop(policy))
  write_json(args.out, result)
  print(json.dumps(result, indent=2))


def compare(ours, torch):
  """Differences of one iteration, which compiles ours.

  Raises:
    ValueError: if the two do not do the same.
  """
  latents = np.abs(ours.rollout() - torch.rollout()).max()
  differences = {"latents": float(latents)}
  pairs = zip(ours.update(), torch.update(), strict=True)
  for name, (a, b) in zip(("loss", "grad_norm"), pairs, strict=True):
    differences[name] = abs(a / b - 1)
  if not max(differences.values()) < 1e-3:  # not NaN either
    raise ValueError(
      f"differences are {differences}; at most 1e-3 is allowed."
    )
  return differences


def measure(sides, repeats):
  """Images per second of every repeat, and what ours is to torch.

  A ratio is taken between neighbours in time, since other work on the machine
  comes and goes; that of processor time hardly feels it.
  """
  speed = {name: {phase: [] for phase in PHASES} for name in sides}
  cpu = copy.deepcopy(speed)
  for repeat in range(repeats + 1):
    for phase in PHASES:
      for name, side in sides.items():
        began = time.perf_counter(), time.process_time()
        getattr(side, phase)()
        wall, busy = time.perf_counter(), time.process_time()
        wall, busy = wall - began[0], busy - began[1]
        line = f"{repeat} {phase} {name}: {wall:.2f} s, CPU {busy:.2f} s"
        print(line, flush=True)
        if repeat:  # the first one warms up
          speed[name][phase].append(BATCH / wall)
          cpu[name][phase].append(busy)
  result = speed | {"cpu_seconds": cpu}
  for kind, (above, below) in {
    "": (speed["ours"], speed["torch"]),
    "cpu_": (cpu["torch"], cpu["ours"]),
  }.items():
    ratios = {p: np.divide(above[p], below[p]) for p in PHASES}
    result[f"{kind}ratio"] = {p: float(np.median(ratios[p])) for p in PHASES}
    result[f"{kind}spread"] = {
      p: [float(ratios[p].min()), float(ratios[p].max())] for p in PHASES
    }
  return result


def gflop(policy):
  """Matrix products of a phase, GFLOP.

  Frozen weights need one product in the backward pass, to hand the gradient
  down; attention and adapters need two.
  """
  c, tokens = policy.mmdit, (SD3["sample_size"] // SD3["patch_size"]) ** 2
  both = tokens + TEXT_TOKENS
  attention = 4 * both**2 * c.width * c.depth
  text = 2 * c.text_width * c.width * TEXT_TOKENS
  frozen = policy_flops(policy, TEXT_TOKENS) - attention + text
  lora = 4 * 4 * c.width * LORA.rank * both * c.depth
  forward = frozen + attention + lora
  gradient = 2 * frozen + 3 * (attention + lora)
  return {
    "rollout": BATCH * STEPS * forward / 1e9,
    "update": BATCH * WINDOW * gradient / 1e9,
  }


def shares(speed, work):
  """How near our phases are to their matrix products alone."""
  rate = matmul_rate()
  return {
    "gflop": work,
    "matmul_gflop_per_second": rate,
    "share_of_matmul_rate": {
      phase: work[phase] / BATCH * float(np.median(speed[phase])) / rate
      for phase in PHASES
    },
  }


if __name__ == "__main__":
  main()
