"""Plans FLUX.1-dev and SD3.5-Medium for slices of several sizes.

  python -m experiments.plan --out experiments/plan/results.json [--only NAME]

Results of cases that are not asked for stay in the file.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import jax

from experiments.plan import parts
from spatialrl.parallel import chips, estimate
from spatialrl.parallel.mesh import make_mesh
from spatialrl.plan import Plan
from spatialrl.train import programs
from spatialrl.train.configs import load_config

_ROOT = pathlib.Path(__file__).parents[2]
_FLUX, _SD35 = "flux", "sd35"


def rows(devices, each):
  """So many images a device in a network call, and eight in the decoder."""
  count = devices * each
  return {
      "rollout.chunk": count,
      "rollout.decode_chunk": 8 * devices,
      "train.microbatch": count,
      "rewards.qwen_score.batch": max(48, count),
  }


def size(pixels):
  """Images of so many pixels a side."""
  tokens = (pixels // 16) ** 2
  return {
      "model.size": pixels,
      "schedule.tokens": tokens,
      "eval.schedule.tokens": tokens,
  }


# Name -> (config, topology, changes, last program or None for all). A last one
# of parts.NAMES: of a rollout's parts instead.
CASES = {
    "flux": (_FLUX, "v5e:4x4", {}, None),
    # Four images a device in the decoder: eight take 2.8 GB more than there is.
    "sd35_2x2": (
        _SD35, "v5e:2x2", rows(4, 4) | {"rollout.decode_chunk": 16}, None
    ),
    "flux_v6e": (_FLUX, "v6e:2x4", rows(8, 2), None),
    "flux_v5p": (_FLUX, "v5p:2x2x2", rows(8, 2), None),
    "rollout_512_2": (_FLUX, "v5e:4x4", rows(16, 2), "rollout"),
    "forward_512_1": (_FLUX, "v5e:4x4", rows(16, 1), "forward"),
    "forward_512_2": (_FLUX, "v5e:4x4", rows(16, 2), "decode"),
    "forward_1024_1": (_FLUX, "v5e:4x4", rows(16, 1) | size(1024), "forward"),
    "forward_1024_2": (_FLUX, "v5e:4x4", rows(16, 2) | size(1024), "forward"),
    "weak_4": (
        _FLUX, "v5e:2x2", {"prompts.per_step": 4} | rows(4, 2), "forward"
    ),
    "weak_64": (
        _FLUX, "v5e:8x8", {"prompts.per_step": 64} | rows(64, 2), "forward"
    ),
}


def run(name):
  """One case as a dict of numbers."""
  family, topology, changes, last = CASES[name]
  config = load_config(
      _ROOT / "configs" / f"{family}_spatialscore_grpo.py"
  )
  config.update_from_flattened_dict(changes)
  place = chips.find(topology)
  mesh = make_mesh(config.mesh, list(place.devices))
  found, too_large, began = {}, None, time.perf_counter()
  compiled = (
      parts.compile_parts if last in parts.NAMES else programs.compile_all
  )
  try:
    for program, one in compiled(config, mesh):
      found[program] = estimate.of(
          one.compiled, place, mesh, calls=one.calls, resident=one.resident
      )
      if program == last:
        break
  except programs.OutOfMemory as error:
    too_large = error
  plan = Plan(place, mesh, programs.images_of(config), found, too_large)
  return {
      "topology": topology,
      "changes": changes,
      "programs": {n: dataclasses.asdict(one) for n, one in found.items()},
      "ratio": {
          n: one.estimated_seconds / one.roofline_seconds
          for n, one in found.items()
          if one.roofline_seconds
      },
      "images": plan.images,
      "seconds": plan.seconds,
      "spare_bytes": plan.spare,
      # Some of the programs tell nothing about the others.
      "fits": plan.fits if last is None else None,
      "too_large": too_large and str(too_large),
      "planning_seconds": time.perf_counter() - began,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  results = json.loads(args.out.read_text()) if args.out.exists() else {}
  for name in args.only:
    results[name] = run(name)
    print(name, results[name]["ratio"], results[name]["seconds"], flush=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
  main()
