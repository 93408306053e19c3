"""Job `pretrain`: flow matching on captioned scenes makes the base policy."""

import json

import jax
import jax.numpy as jnp

from spatialrl.data import scenes, tokenizers
from spatialrl.evals import relations
from spatialrl.io import assets
from spatialrl.models.build import make_policy
from spatialrl.models.policy import PREDICTIONS
from spatialrl.train import sampling
from spatialrl.train.supervised import fit


def run(config, workdir, mesh):
  """Trains text encoder and MMDiT from scratch and exports their average.

  Writes `policy.safetensors` in the workdir.
  """
  if config.loss_on not in PREDICTIONS:
    raise ValueError(
        f"loss_on is {config.loss_on!r}; allowed are {PREDICTIONS}."
    )
  tokenizer = tokenizers.load()
  policy = make_policy(config.policy, len(tokenizer))
  params = policy.init(jax.random.key(config.seed))
  data = config.data

  def make_batch(step):
    # One number of relations a batch, so that short captions need no padding.
    relations = data.relations[step % len(data.relations)]
    images, captions, _ = scenes.captioned_scenes(
        config.seed,
        step,
        config.batch,
        size=policy.size,
        relations=(relations,),
        wrong_share=data.wrong_share,
    )
    length = tokenizers.caption_tokens(relations)
    ids, mask = tokenizers.encode(tokenizer, captions, length)
    return {"images": images, "ids": ids, "mask": mask}

  def loss(params, batch, key):
    return flow_matching(policy, params, batch, key, config)

  prompts = scenes.prompts(
      config.seed, config.eval.prompts, relations=tuple(data.relations),
      held_out=True,
  )
  sampler = sampling.Sampler(policy, tokenizer, mesh, config.eval)

  def evaluate(params):
    images = sampler(params, None, prompts, config.seed)
    return relations.summary(relations.verdicts(prompts, images))

  state = fit(config, workdir, mesh, params, loss, make_batch, evaluate)
  assets.save(
      f"{workdir}/policy.safetensors",
      jax.device_get(state.ema),
      {"policy": policy.to_json(), "config": json.dumps(config.to_dict())},
  )


def flow_matching(policy, params, batch, key, config):
  """Mean squared error of the velocity, or of the image, at random times.

  t = s u / (1 + (s - 1) u) with u uniform and s = `time_shift`: layouts are
  decided above t = 0.9, where a logit-normal draws hardly any time.

  Args:
    policy: Policy.
    params: {"text": ..., "mmdit": ...}.
    batch: images u8[B, S, S, 3], ids i32[B, L], mask bool[B, L].
    key: PRNG key.
    config: fields `time_shift`; `caption_dropout`, the share of captions
      replaced by the empty prompt, for guidance; `loss_on`, "velocity" or
      "image", whose error is t times that of the velocity: it leaves little
      weight to the last, fine noise.

  Returns:
    (f32[], {"loss_above_0.9": f32[], the part where layouts are decided}).
  """
  time_key, noise_key, drop_key = jax.random.split(key, 3)
  rows = batch["images"].shape[0]
  x0 = policy.to_latents(batch["images"].astype(jnp.float32) / 127.5 - 1)
  u = jax.random.uniform(time_key, (rows,))
  t = config.time_shift * u / (1 + (config.time_shift - 1) * u)
  noise = jax.random.normal(noise_key, x0.shape)
  t_ = t[:, None, None, None]
  kept = jax.random.uniform(drop_key, (rows,)) >= config.caption_dropout
  cond = policy.encode(params, batch["ids"], batch["mask"] & kept[:, None])
  v = policy.velocity(params, None, (1 - t_) * x0 + t_ * noise, t, cond)
  error = jnp.mean((v - (noise - x0)) ** 2, axis=(1, 2, 3))
  if config.loss_on == "image":
    error = error * t**2
  early = t > 0.9
  layout = jnp.where(early, error, 0.0).sum() / jnp.maximum(early.sum(), 1)
  return error.mean(), {"loss_above_0.9": layout}
