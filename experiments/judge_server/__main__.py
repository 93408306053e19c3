"""Serves the SpatialScore reward to judges named `remote`.

  python -m experiments.judge_server --port 8000

To serve another reward, hand its function to `server.make_server`.
"""

import argparse
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.judge_server.server import make_server
from spatialrl.parallel.mesh import make_mesh
from spatialrl.rewards.judges import SpatialScore
from spatialrl.scenes.render import to_float


def spatial_score(weights, batch):
  """The learned reward as a scorer, compiled once for `batch` images."""
  mesh = make_mesh((1, 1, -1))
  judge = SpatialScore(ConfigDict({"weights": weights}), mesh)
  side = judge.model.size

  def score(images, prompts):
    if images.shape[1:] != (side, side, 3):
      raise ValueError(
        f"images are of {images.shape[1:]} values; the model of {weights}"
        f" judges {(side, side, 3)}"
      )
    scores = []
    for start in range(0, len(prompts), batch):
      rows = np.arange(start, start + batch).clip(max=len(prompts) - 1)
      signals = judge(to_float(images[rows]), [prompts[i] for i in rows])
      scores.append(np.asarray(signals.scalar))
    return np.concatenate(scores)[: len(prompts)]

  return score


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--weights", default="reward.safetensors", help="a path or a packaged file"
  )
  parser.add_argument(
    "--batch", type=int, default=8, help="images of one call of the network"
  )
  parser.add_argument(
    "--host", default="127.0.0.1", help="whoever reaches it may use it"
  )
  parser.add_argument("--port", type=int, default=8000)
  args = parser.parse_args()
  try:
    scorer = spatial_score(args.weights, args.batch)
    server = make_server(scorer, host=args.host, port=args.port)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  place = "http://{}:{}".format(*server.server_address)
  print(f"{args.weights} on {jax.default_backend()}: {place}", flush=True)
  try:
    server.serve_forever()
  except KeyboardInterrupt:
    server.server_close()


if __name__ == "__main__":
  main()
