"""Where the time of an online run goes, and how far each phase is from matmul.

  python -m experiments.throughput.measure --config configs/quickstart.py \
    --iterations 20 --out experiments/throughput/phases.json

The floor of a phase is its matrix multiplications, counted by hand, and the
convolutions of the decoder, counted by XLA, at the fastest float32 matmul rate
measured in the same process. Times are only compared within one run.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import scenes
from spatialrl.io.workdir import write_json
from spatialrl.models.build import load_policy
from spatialrl.parallel.mesh import make_mesh
from spatialrl.platform import prepare_process
from spatialrl.rewards.judges import make_judges
from spatialrl.train import loop as loops
from spatialrl.train import online
from spatialrl.train.configs import load_config
from spatialrl.train.finish import Evaluation
from spatialrl.train.prepare import kept_rows


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--config", default="configs/quickstart.py")
  parser.add_argument("--iterations", type=int, default=20)
  parser.add_argument("--out", required=True)
  args = parser.parse_args()
  prepare_process()
  path, _, arg = args.config.partition(":")
  config = load_config(path, arg)
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    result = measure(config, mesh, args.iterations)
  write_json(args.out, result)
  print(json.dumps(result, indent=2))


def measure(config, mesh, iterations):
  """Medians over iterations, the first one (compilation) left out."""
  policy, params = load_policy(config.init, config.lora, config.remat)
  judges = make_judges(config.rewards, mesh)
  loop = loops.Loop(config, mesh, policy, judges)
  base = jax.device_put(params)
  state = loop.init(base)
  prompts = scenes.prompts(
      config.seed, config.prompts.count,
      relations=tuple(config.prompts.relations),
  )
  rows = []
  for step in range(iterations + 1):
    chosen, labels = online.choose_prompts(prompts, config, step)
    state, values = loop.iterate(base, state, chosen, labels, step)
    rows.append(values)
  evaluation = Evaluation(config, mesh, policy, judges)
  evaluation.quick(base, state.ema)
  began = time.perf_counter()
  evaluation.quick(base, state.ema)
  evaluated = time.perf_counter() - began
  rate = matmul_rate()
  work = operations(config, policy, judges)
  phases = {}
  for phase in ("rollout", "reward", "update", "host"):
    seconds = [float(r[f"{phase}_seconds"]) for r in rows[1:]]
    phases[phase] = {
        "seconds": float(np.median(seconds)),
        "spread": float(np.std(seconds)),
    }
    if phase in work:
      reached = work[phase] / phases[phase]["seconds"] / 1e9
      phases[phase] |= {
          "matmul_gflop": work[phase] / 1e9,
          "gflop_per_second": reached,
          "share_of_matmul_rate": reached / rate,
      }
  phases["evaluation"] = {"seconds": evaluated, "every": config.eval.every}
  return {"matmul_gflop_per_second": rate, "phases": phases}


def operations(config, policy, judges):
  """Matrix-multiplication FLOPs of one iteration, by phase."""
  images = config.prompts.per_step * config.rollout.group
  calls = 1 if config.rollout.guidance == 1 else 2
  text = config.prompts.max_tokens
  forward = policy_flops(policy, text) * calls
  updated = kept_rows(config) * config.rollout.window
  work = {
      "rollout": images
      * (config.rollout.steps * forward + decoder_flops(policy)),
      # The gradient costs a forward and two passes of the same size.
      "update": updated * forward * 3,
  }
  if config.train.anchor_weight:
    work["update"] += updated * forward
  judge = judges.get("spatial_score")
  if judge is not None:
    work["reward"] = images * reward_flops(judge.model)
  return work


def policy_flops(policy, text):
  """FLOPs of one velocity of one image, matrix products only."""
  c = policy.mmdit
  tokens = (policy.size // policy.fold // c.patch) ** 2
  d = c.width
  streams = 24 * d * d * (tokens + text) * c.depth
  streams -= 18 * d * d * text  # the last block drops the text's output
  modulation = 2 * 12 * d * d * c.depth
  attention = 4 * (tokens + text) ** 2 * d * c.depth
  return streams + modulation + attention


def decoder_flops(policy):
  """FLOPs of decoding one image, as XLA counts them before it optimises."""
  params = jax.eval_shape(policy.init, jax.random.key(0))
  latents = jax.ShapeDtypeStruct((1, *policy.latent_shape), jnp.float32)
  cost = jax.jit(policy.decode).lower(params, latents).cost_analysis()
  return cost.get("flops", 0.0)


def reward_flops(model):
  """FLOPs of one score, matrix products only."""
  tokens = (model.size // model.patch) ** 2 + model.max_tokens + 1
  d = model.width
  return model.depth * (24 * d * d * tokens + 4 * tokens**2 * d)


def matmul_rate():
  """Fastest float32 rate over a few shapes, GFLOP/s."""
  best = 0.0
  multiply = jax.jit(jnp.matmul)
  for rows, inner, columns in ((1024,) * 3, (2048,) * 3, (4096, 128, 512)):
    a, b = jnp.ones((rows, inner)), jnp.ones((inner, columns))
    multiply(a, b).block_until_ready()
    for _ in range(10):
      began = time.perf_counter()
      multiply(a, b).block_until_ready()
      seconds = time.perf_counter() - began
      best = max(best, 2 * rows * inner * columns / seconds / 1e9)
  return best


if __name__ == "__main__":
  main()
