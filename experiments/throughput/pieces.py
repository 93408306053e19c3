"""What one forward pass of `against_torch`'s network is made of.

  OMP_WAIT_POLICY=passive python -m experiments.throughput.pieces \
    --out experiments/throughput/pieces.json

Each piece is timed alone, in ours and in torch by turns, at the network's
shapes: milliseconds of processor time for all blocks, the least of the repeats.
Text and image go together, which the network does one after the other.
"""

import argparse
import functools
import json
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from experiments.throughput import sides as setting
from experiments.throughput.against_torch import THREADS
from spatialrl.io.workdir import write_json
from spatialrl.models import layers
from spatialrl.models.attention import attend
from spatialrl.platform import prepare_process

REPEATS = 12
BATCH, BLOCKS = setting.BATCH, setting.SD3["num_layers"]
WIDTH = setting.SD3["caption_projection_dim"]
HEADS, RANK = setting.SD3["num_attention_heads"], setting.LORA.rank
TOKENS = (setting.SD3["sample_size"] // setting.SD3["patch_size"]) ** 2
TOKENS += setting.TEXT_TOKENS


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", required=True)
  args = parser.parse_args()
  prepare_process()
  torch.set_num_threads(THREADS)
  result = {name: compare(*piece) for name, piece in PIECES.items()}
  write_json(args.out, result)
  print(json.dumps(result, indent=2))


def compare(ours, theirs, *shapes):
  """Milliseconds of both for all blocks, on random inputs of these shapes."""
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]
  tensors = [torch.tensor(a) for a in arrays]
  arrays = jax.device_put(arrays)
  ours = jax.jit(ours)
  least = {"ours": np.inf, "torch": np.inf}
  with torch.inference_mode():
    for _ in range(REPEATS):
      for name, run in {
        "ours": lambda: jax.block_until_ready(ours(*arrays)),
        "torch": lambda: theirs(*tensors),
      }.items():
        began = time.process_time()
        run()
        least[name] = min(least[name], time.process_time() - began)
  return {name: 1e3 * BLOCKS * seconds for name, seconds in least.items()}


def _matmul(*factors):
  return functools.reduce(lambda a, b: a @ b, factors)


def _attend_torch(q, k, v):
  q, k, v = (x.transpose(1, 2) for x in (q, k, v))
  out = functional.scaled_dot_product_attention(q, k, v)
  return out.transpose(1, 2).reshape(*out.shape[:1], -1, WIDTH)


def _modulate(x, shift, scale):
  return layers.normed(x) * (1 + scale) + shift


def _modulate_torch(x, shift, scale):
  x = functional.layer_norm(x, (WIDTH,), eps=1e-6)
  return x * (1 + scale) + shift


def _head_norm(q):
  norm = nn.RMSNorm(epsilon=1e-6)
  return norm.apply({"params": {"scale": jnp.ones(q.shape[-1])}}, q)


_STATES, _VECTOR = (BATCH, TOKENS, WIDTH), (BATCH, 1, WIDTH)
_SPLIT = (BATCH, TOKENS, HEADS, WIDTH // HEADS)
# (ours, torch's, shapes of the inputs), what a block does of a kind together.
PIECES = {
  "projections q, k, v, out": (
    _matmul, _matmul, _STATES, *[(WIDTH, WIDTH)] * 4,
  ),
  "feed forward without GELU": (
    _matmul, _matmul, _STATES, (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH),
  ),
  "adapters": (
    _matmul, _matmul, _STATES, *[(WIDTH, RANK), (RANK, WIDTH)] * 4,
  ),
  "attention": (
    functools.partial(attend, implementation="auto"),
    _attend_torch,
    *[_SPLIT] * 3,
  ),
  "GELU": (
    functools.partial(nn.gelu, approximate=True),
    functools.partial(functional.gelu, approximate="tanh"),
    (BATCH, TOKENS, 4 * WIDTH),
  ),
  "norms and modulation, two": (
    lambda x, *m: _modulate(_modulate(x, *m), *m),
    lambda x, *m: _modulate_torch(_modulate_torch(x, *m), *m),
    _STATES, _VECTOR, _VECTOR,
  ),
  "QK norms": (
    lambda q, k: (_head_norm(q), _head_norm(k)),
    lambda q, k: tuple(
      functional.rms_norm(x, x.shape[-1:], eps=1e-6) for x in (q, k)
    ),
    _SPLIT, _SPLIT,
  ),
}


if __name__ == "__main__":
  main()
