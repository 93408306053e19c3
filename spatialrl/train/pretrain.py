"""Job `pretrain`: flow matching on captioned scenes makes the base policy."""

import json

import jax
import jax.numpy as jnp

from spatialrl.data import scenes, tokenizers
from spatialrl.data.prompts import Tokens
from spatialrl.evals import relations
from spatialrl.io import assets
from spatialrl.models.build import load_policy, new_policy
from spatialrl.parallel import distributed, partition
from spatialrl.train import sampling
from spatialrl.train.supervised import fit


def starting(config):
  """What a run begins with: (Policy, weights to train, weights that stay)."""
  if config.init:
    policy, params = load_policy(config.init, remat=config.policy.remat)
    frozen = {n: params[n] for n in ("autoencoder",) if n in params}
  else:
    policy, frozen = new_policy(config.policy, len(tokenizers.load()))
    params = policy.init(jax.random.key(config.seed))
  params = {name: params[name] for name in params if name not in frozen}
  return policy, params, frozen


def run(config, workdir, mesh):
  """Trains text encoder and MMDiT and exports their average.

  Starts from scratch, or from the weights that `config.init` names. Writes
  `policy.safetensors` in the workdir.
  """
  if not 0 < config.loss_floor <= 1:
    raise ValueError(
        f"loss_floor is {config.loss_floor}; allowed is above 0, up to 1."
    )
  tokenizer = tokenizers.load()
  policy, params, frozen = starting(config)
  frozen = partition.place(mesh, policy.family, frozen)
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

  def loss(params, batch, key, frozen):
    return flow_matching(policy, params | frozen, batch, key, config)

  prompts = scenes.prompts(
      config.seed, config.eval.prompts, relations=tuple(data.relations),
      held_out=True,
  )
  read = Tokens(config.eval.max_tokens)
  sampler = sampling.Sampler(policy, read, mesh, config.eval)

  def evaluate(params):
    images = sampler(params | frozen, None, prompts, config.seed)
    return relations.summary(relations.verdicts(prompts, images))

  state = fit(
      config, workdir, mesh, params, loss, make_batch, evaluate, (frozen,)
  )
  assets.save(
      f"{workdir}/policy.safetensors",
      distributed.to_host(state.ema | frozen),
      {"policy": policy.to_json(), "config": json.dumps(config.to_dict())},
  )


def flow_matching(policy, params, batch, key, config):
  """Mean squared error of the velocity at random times.

  t = s u / (1 + (s - 1) u) with u uniform and s = `time_shift`: layouts are
  decided above t = 0.9, where a logit-normal draws hardly any time.

  Args:
    policy: Policy.
    params: as `Policy.init` gives.
    batch: images u8[B, S, S, 3], ids i32[B, L], mask bool[B, L].
    key: PRNG key.
    config: fields `time_shift`; `caption_dropout`, the share of captions
      replaced by the empty prompt, for guidance; `loss_floor`, the time below
      which the error of the image counts, (t / loss_floor)^2 times that of
      the velocity: the last, fine noise would take most of the gradient.

  Returns:
    (f32[], {"loss_above_0.9": f32[], the part where layouts are decided}).
  """
  time_key, noise_key, drop_key = jax.random.split(key, 3)
  rows = batch["images"].shape[0]
  x0 = policy.to_latents(
      params, batch["images"].astype(jnp.float32) / 127.5 - 1
  )
  u = jax.random.uniform(time_key, (rows,))
  t = config.time_shift * u / (1 + (config.time_shift - 1) * u)
  noise = jax.random.normal(noise_key, x0.shape)
  t_ = t[:, None, None, None]
  kept = jax.random.uniform(drop_key, (rows,)) >= config.caption_dropout
  cond = policy.encode(params, batch["ids"], batch["mask"] & kept[:, None])
  v = policy.velocity(params, None, (1 - t_) * x0 + t_ * noise, t, cond)
  error = jnp.mean((v - (noise - x0)) ** 2, axis=(1, 2, 3))
  error = error * (t / jnp.maximum(t, config.loss_floor)) ** 2
  early = t > 0.9
  layout = jnp.where(early, error, 0.0).sum() / jnp.maximum(early.sum(), 1)
  return error.mean(), {"loss_above_0.9": layout}
