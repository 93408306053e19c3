"""Job `reward` on images: the published SpatialScore from preference pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.convert import folder
from spatialrl.data import pairs
from spatialrl.io.metrics import read_metrics
from spatialrl.io.workdir import write_json
from spatialrl.models import spatial_score
from spatialrl.models.lora import LoRAConfig
from spatialrl.models.spatial_score import SpatialScoreConfig
from spatialrl.parallel import mesh as meshes
from spatialrl.rewards import qwen
from spatialrl.train import tiny
from spatialrl.train.supervised import fit


def run(config, workdir, mesh, compare):
  """Trains adapters, reward token and head; the base stays as it is.

  Writes `spatial_score.safetensors`, which the judge `qwen_score` takes, and
  `summary.json` in the workdir.

  Args:
    config: see `configs/spatialscore_qwen.py`.
    workdir: directory of the run.
    mesh: the mesh in use.
    compare: (mu f32[B, 2], log sigma f32[B, 2]) of winner and loser ->
      (loss f32[], dict of f32[]).
  """
  config = tiny.prepare(config, workdir)
  meshes.check_divides(mesh, "batch", config.batch)
  meshes.check_divides(mesh, "eval.batch", config.eval.batch)
  sizes = folder.open_model(config.base, "qwen_vl").sizes
  lora = config.lora
  model = SpatialScoreConfig(
      dataclasses.replace(sizes, dtype=config.dtype),
      LoRAConfig(lora.rank, lora.alpha, tuple(lora.targets)),
      config.reward_token,
      config.head,
  )
  reading = qwen.Reading(config.pixels, config.max_tokens)
  reader = qwen.Reader(config.base, model, reading)
  train = pairs.read(config.data.pairs, config.data.folder)
  held_out = pairs.read(config.data.held_out, config.data.folder)
  if not 1 <= config.batch <= len(train):
    raise ValueError(
        f"batch is {config.batch}; allowed are 1 to {len(train)}, the pairs of"
        f" {config.data.pairs!r}."
    )
  reader.tokens([pair.prompt for pair in (*train, *held_out)])  # all fit
  _, base = qwen.load_base(config.base, config.dtype, mesh)
  trainable = jax.jit(
      lambda key, base: spatial_score.init_trainable(model, key, base)
  )(jax.random.key(config.seed), base)

  def make_batch(step):
    rng = np.random.default_rng([config.seed, step])
    rows = rng.choice(len(train), config.batch, replace=False)
    return _batch(reader, reading, [train[i] for i in rows])

  def scores(trainable, batch, base):
    """(mu, log sigma), each f32[B, 2]: winner and loser in one call."""
    tokens, images = batch
    rows = images.shape[0]
    images = images.reshape(2 * rows, *images.shape[2:])
    twice = [jnp.repeat(x, 2, axis=0) for x in tokens]
    inputs = reader.inputs(twice, images.astype(jnp.float32) / 127.5 - 1)
    out = spatial_score.log_score(model, base, trainable, inputs)
    return tuple(x.reshape(rows, 2) for x in out)

  def loss(trainable, batch, key, base):
    del key
    return compare(*scores(trainable, batch, base))

  score = jax.jit(scores, out_shardings=meshes.replicated(mesh))

  def evaluate(trainable):
    right = []
    for start in range(0, len(held_out), config.eval.batch):
      rows = np.arange(start, start + config.eval.batch) % len(held_out)
      batch = _batch(reader, reading, [held_out[i] for i in rows])
      batch = meshes.put_rows(mesh, batch)
      mu = np.asarray(score(trainable, batch, base)[0])
      right.append(mu[:, 0] > mu[:, 1])
    right = np.concatenate(right)[: len(held_out)]
    return {"pair_accuracy": float(right.mean())}

  state = fit(
      config, workdir, mesh, trainable, loss, make_batch, evaluate, (base,),
      family="qwen_vl",
  )
  qwen.save(f"{workdir}/spatial_score.safetensors", model, reading, state.ema)
  last = read_metrics(workdir)[-1]
  write_json(
      f"{workdir}/summary.json",
      {
          "final": {"pair_accuracy": last["pair_accuracy"]},
          "pairs": {"train": len(train), "held_out": len(held_out)},
          "steps": config.steps,
          "seed": config.seed,
          "config": config.to_dict(),
      },
  )


def _batch(reader, reading, chosen):
  """(tokens of the prompts, images u8[B, 2, S, S, 3]) of a list of pairs."""
  images = [pairs.load_images(pair, reading.pixels) for pair in chosen]
  return reader.tokens([pair.prompt for pair in chosen]), np.stack(images)
