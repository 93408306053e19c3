"""Job `autoencoder`: the small AutoencoderKL whose latents the policy sees."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import scenes
from spatialrl.evals import relations
from spatialrl.io import assets
from spatialrl.models import autoencoder
from spatialrl.parallel import distributed
from spatialrl.scenes import render
from spatialrl.train.supervised import fit

_HELD_OUT_SEED = 1 << 20  # evaluation scenes share no seed with training


def run(config, workdir, mesh):
  """Trains encoder and decoder from scratch and exports their average.

  Writes `autoencoder.safetensors` in the workdir, with the shift and scaling
  that give its latents mean 0 and spread 1.
  """
  model = autoencoder.AutoencoderConfig(**config.autoencoder.to_dict())
  if config.size % model.factor:
    raise ValueError(
        f"size is {config.size}; it must be a multiple of {model.factor}."
    )
  params = autoencoder.init(model, jax.random.key(config.seed))

  def draw(seed, step, count):
    return scenes.captioned_scenes(
        seed, step, count, size=config.size,
        relations=tuple(config.data.relations), wrong_share=0.0,
    )

  def make_batch(step):
    return {"images": draw(config.seed, step, config.batch)[0]}

  def loss(params, batch, key):
    return variational(model, params, batch, key, config.kl_weight)

  held_out = draw(config.seed + _HELD_OUT_SEED, 0, config.eval.images)
  evaluation = jax.jit(lambda p, x: _reconstruct(model, p, x))

  def evaluate(params):
    return _evaluate(evaluation(params, _to_float(held_out[0])), *held_out)

  state = fit(
      config, workdir, mesh, params, loss, make_batch, evaluate,
      family="autoencoder",
  )
  params = distributed.to_host(state.ema)
  _, mean, std = evaluation(params, _to_float(held_out[0]))
  spread = np.sqrt(np.var(mean) + np.mean(np.square(std)))
  model = dataclasses.replace(
      model, shift=float(np.mean(mean)), scaling=float(1 / spread)
  )
  assets.save(
      f"{workdir}/autoencoder.safetensors",
      params,
      {
          "autoencoder": json.dumps(dataclasses.asdict(model)),
          "config": json.dumps(config.to_dict()),
      },
  )


def variational(model, params, batch, key, kl_weight):
  """Squared error of the pixels plus a share of the KL to N(0, 1).

  Args:
    model: AutoencoderConfig.
    params: {"encoder": ..., "decoder": ...}.
    batch: images u8[B, S, S, 3].
    key: PRNG key.
    kl_weight: of the KL in nats a latent number, against the mean squared
      error of a pixel in [-1, 1].

  Returns:
    (f32[], {"pixel_error": f32[], "kl": f32[]}).
  """
  images = _to_float(batch["images"])
  mean, log_variance = autoencoder.posterior(model, params, images)
  std = jnp.exp(0.5 * log_variance)
  z = mean + std * jax.random.normal(key, mean.shape)
  error = jnp.mean((_decode(model, params, z) - images) ** 2)
  kl = 0.5 * jnp.mean(mean**2 + std**2 - 1 - log_variance)
  return error + kl_weight * kl, {"pixel_error": error, "kl": kl}


def _reconstruct(model, params, images):
  mean, log_variance = autoencoder.posterior(model, params, images)
  return _decode(model, params, mean), mean, jnp.exp(0.5 * log_variance)


def _decode(model, params, z):
  return autoencoder.decode(model, params, (z - model.shift) * model.scaling)


def _evaluate(reconstructed, images, captions, _):
  """What the oracle still sees in the images that come back."""
  pictures = render.to_uint8(reconstructed[0])
  error = render.to_float(pictures) - render.to_float(images)
  seen = relations.summary(relations.verdicts(captions, pictures))
  return {
      "reconstructed_all_relations": seen["all_relations"],
      "reconstructed_object_recall": seen["object_recall"],
      "rmse": float(np.sqrt(np.mean(error**2))),
  }


def _to_float(images):
  return jnp.asarray(images).astype(jnp.float32) / 127.5 - 1
