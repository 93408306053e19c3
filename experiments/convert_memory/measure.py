"""Host memory of a conversion, against the size of what is converted.

  python -m experiments.convert_memory.measure \
    --out experiments/convert_memory/results.json

Makes a folder of random bfloat16 weights in four shards, in the layout of
SD3.5-Medium and narrower, converts it to Orbax and loads it on the CPU, each in
a process of its own, and deletes all of it.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

FIELDS = {
  "_class_name": "SD3Transformer2DModel",
  "attention_head_dim": 64,
  "caption_projection_dim": 1024,
  "dual_attention_layers": list(range(13)),
  "in_channels": 16,
  "joint_attention_dim": 4096,
  "num_attention_heads": 16,
  "num_layers": 24,
  "out_channels": 16,
  "patch_size": 2,
  "pooled_projection_dim": 2048,
  "pos_embed_max_size": 384,
  "qk_norm": "rms_norm",
  "sample_size": 128,
}
SHARDS = 4


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", help="JSON file of the results")
  parser.add_argument("--step", choices=STEPS, help="run one, in FOLDER")
  parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path())
  args = parser.parse_args()
  if args.step:
    print(json.dumps(STEPS[args.step](args.folder)))
    return
  with tempfile.TemporaryDirectory() as folder:
    result = {step: run(step, folder) for step in STEPS}
  text = json.dumps(result, indent=2) + "\n"
  print(text, end="")
  if args.out:
    pathlib.Path(args.out).write_text(text)


def run(step, folder):
  """The numbers of one step, from a process that does nothing else."""
  command = [sys.executable, "-m", "experiments.convert_memory.measure"]
  done = subprocess.run(
    [*command, "--step", step, "--folder", folder],
    check=True, stdout=subprocess.PIPE, text=True,
  )
  return json.loads(done.stdout)


def make(folder):
  """Writes the synthetic folder; bytes of all shards and of the largest."""
  import ml_dtypes
  import numpy as np
  from safetensors.numpy import save_file

  from spatialrl.convert import sd3

  rng = np.random.default_rng(0)
  shapes = {e.name: e.shape for e in sd3.table(sd3.read_config(FIELDS))}
  names, places, sizes = list(shapes), {}, []
  model = folder / "model"
  model.mkdir()
  for i in range(SHARDS):
    file = f"diffusion_pytorch_model-{i + 1:05}-of-{SHARDS:05}.safetensors"
    part = names[i * len(names) // SHARDS : (i + 1) * len(names) // SHARDS]
    tensors = {
      name: rng.standard_normal(shapes[name], np.float32).astype(
        ml_dtypes.bfloat16
      )
      for name in part
    }
    save_file(tensors, model / file)
    places |= dict.fromkeys(part, file)
    sizes.append((model / file).stat().st_size)
  index = {"metadata": {}, "weight_map": places}
  name = "diffusion_pytorch_model.safetensors.index.json"
  (model / name).write_text(json.dumps(index))
  (model / "config.json").write_text(json.dumps(FIELDS))
  return {"bytes": sum(sizes), "largest_shard": max(sizes)}


def imports(folder):
  """What the libraries take before anything is read."""
  del folder
  import jax

  from spatialrl.convert import stream

  assert stream and jax.devices()
  return {"peak_bytes": peak()}


def to_orbax(folder):
  """A conversion in the folder's dtype."""
  from spatialrl.convert import stream

  start = time.perf_counter()
  stream.to_orbax(folder / "model", folder / "checkpoint")
  return {"peak_bytes": peak(), "seconds": time.perf_counter() - start}


def load(folder):
  """The weights as arrays of the CPU, which the peak includes."""
  import jax

  from spatialrl.convert import stream

  start = time.perf_counter()
  _, params = stream.load(folder / "model")
  jax.block_until_ready(params)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  return {
    "peak_bytes": peak(),
    "result_bytes": size,
    "seconds": time.perf_counter() - start,
  }


def compare(folder):
  """Whether the checkpoint holds what was loaded, leaf by leaf."""
  import jax
  import numpy as np

  from spatialrl.convert import stream
  from spatialrl.io.checkpoint import load_params

  _, params = stream.load(folder / "model")
  stored = load_params(folder / "checkpoint")
  jax.tree.map(np.testing.assert_array_equal, stored, params)
  return {"equal": True, "leaves": len(jax.tree.leaves(stored))}


def peak():
  """Largest resident memory of this process so far, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


STEPS = {
  f.__name__: f for f in (make, imports, to_orbax, load, compare)
}


if __name__ == "__main__":
  main()
