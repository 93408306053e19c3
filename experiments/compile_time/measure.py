"""How long a FLUX update compiles, by its number of blocks.

  python -m experiments.compile_time.measure \
    --out experiments/compile_time/results.json
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from spatialrl.models import lora
from spatialrl.models.flux import Flux, FluxConfig

BLOCKS = {"4": (2, 2), "57": (19, 38)}
ADAPTER = lora.LoRAConfig(rank=4, targets=(r".*_blocks/(image_|text_)?[qkv]",))
B, SIDE, L = 2, 16, 16


def update(config):
  """(function, arguments) of one gradient step on the adapters."""
  network = Flux(config)
  given = {
      "x": jnp.ones((B, SIDE, SIDE, config.channels)),
      "t": jnp.ones(B),
      "text": jnp.ones((B, L, config.text_width)),
      "pooled": jnp.ones((B, config.pooled_width)),
      "guidance": jnp.ones(B),
  }

  def apply(variables, given):
    with lora.adapted(ADAPTER):
      return network.apply(variables, **given)

  def init(key):
    with lora.adapted(ADAPTER):
      return network.init(key, **given)

  def step(params, adapters, given):
    def loss(adapters):
      variables = {"params": params, lora.COLLECTION: adapters}
      return jnp.mean(jnp.square(apply(variables, given)))

    value, grads = jax.value_and_grad(loss)(adapters)
    return value, jax.tree.map(lambda w, g: w - 1e-3 * g, adapters, grads)

  shapes = jax.eval_shape(init, jax.random.key(0))
  return step, (shapes["params"], shapes[lora.COLLECTION], given)


def seconds(blocks):
  """CPU and wall seconds to trace, lower and compile, from cold caches."""
  doubles, singles = blocks
  config = FluxConfig(
      width=64,
      doubles=doubles,
      singles=singles,
      heads=2,
      axes=(8, 12, 12),
      text_width=32,
      pooled_width=32,
  )
  step, arguments = update(config)
  jax.clear_caches()
  cpu, wall = time.process_time(), time.perf_counter()
  jax.jit(step).lower(*arguments).compile()
  return {
      "cpu_seconds": time.process_time() - cpu,
      "wall_seconds": time.perf_counter() - wall,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--out", required=True)
  args = parser.parse_args()
  seconds(BLOCKS["4"])  # what the first compilation alone pays
  runs = {name: [] for name in BLOCKS}
  for _ in range(args.repeats):
    for name, blocks in BLOCKS.items():
      runs[name].append(seconds(blocks))
      print(name, runs[name][-1], flush=True)
  medians = {
      name: statistics.median(run["cpu_seconds"] for run in values)
      for name, values in runs.items()
  }
  result = {
      "jax": jax.__version__,
      "blocks": runs,
      "median_cpu_seconds": medians,
      "ratio": medians["57"] / medians["4"],
  }
  with open(args.out, "w") as file:
    json.dump(result, file, indent=2)
    file.write("\n")


if __name__ == "__main__":
  main()
