"""The supervised phases of the job `reflect`: the four parts, each alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import tokenizers
from spatialrl.data.prompts import Tokens
from spatialrl.evals import relations as verdicts
from spatialrl.io import assets
from spatialrl.models import editor as editors
from spatialrl.models.build import load_policy, new_policy
from spatialrl.parallel import mesh as meshes
from spatialrl.reflect import editing, scenes, triples
from spatialrl.scenes import instructions
from spatialrl.train import pretrain, sampling
from spatialrl.train.supervised import fit

_HELD_OUT = 1 << 21  # seed of what is measured on; training seeds are smaller


def diffuser(config, folder, mesh):
  """Goes on with the packaged policy on captions of two to four relations.

  Args:
    config: of the phase, see configs/rl_rig.py.
    folder: pathlib.Path of the phase; `policy.safetensors` is written there.
    mesh: the mesh in use.
  """
  tokenizer = tokenizers.load()
  if config.init:
    policy, params = load_policy(config.init, remat=True)
    frozen = {n: params[n] for n in ("autoencoder",) if n in params}
  else:
    policy, frozen = new_policy(config.policy, len(tokenizer))
    params = policy.init(jax.random.key(config.seed))
  params = {name: params[name] for name in params if name not in frozen}
  frozen = jax.device_put(frozen, meshes.replicated(mesh))

  def make_batch(step):
    images, captions = scenes.captioned(
        config.seed, step, config.batch, size=policy.size,
        relations=scenes.RELATIONS, wrong_share=config.wrong_share,
    )
    ids, mask = tokenizers.encode(tokenizer, captions, scenes.TOKENS)
    return {"images": images, "ids": ids, "mask": mask}

  def loss(params, batch, key, frozen):
    return pretrain.flow_matching(policy, params | frozen, batch, key, config)

  prompts = scenes.prompts(config.seed, config.eval.prompts, held_out=True)
  sampler = sampling.Sampler(
      policy, Tokens(config.eval.max_tokens), mesh, config.eval
  )

  def evaluate(params):
    images = sampler(params | frozen, None, prompts, config.seed)
    return verdicts.summary(verdicts.verdicts(prompts, images))

  state = fit(
      config, folder, mesh, params, loss, make_batch, evaluate, (frozen,)
  )
  assets.save(
      folder / "policy.safetensors",
      jax.device_get(state.ema | frozen),
      {"policy": policy.to_json(), "config": json.dumps(config.to_dict())},
  )


def editor(config, folder, mesh):
  """Warm start of the Inverse Diffuser on rendered edits.

  Writes `editor.safetensors`. It begins as the phase `diffuser` ended.
  """
  policy, base = load_policy(folder.parent / "diffuser/policy.safetensors")
  policy = dataclasses.replace(
      policy, mmdit=dataclasses.replace(policy.mmdit, remat=True)
  )
  model, params = editors.from_policy(
      policy, base, config.start, jax.random.key(config.seed)
  )
  frozen = {n: params[n] for n in ("autoencoder",) if n in params}
  params = {name: params[name] for name in params if name not in frozen}
  frozen = jax.device_put(frozen, meshes.replicated(mesh))
  side = model.latent_shape[0]

  def make_batch(step):
    return dataclasses.asdict(triples.draw(
        config.seed, step, config.batch, size=policy.size, side=side
    ))

  def loss(params, batch, key, frozen):
    return edit_matching(model, params | frozen, batch, key, config)

  held_out = triples.draw(
      _HELD_OUT, 0, config.eval.edits, size=policy.size, side=side
  )
  inverse = editing.Inverse(
      model, steps=config.eval.steps, shift=config.eval.shift
  )

  def evaluate(params):
    return edit_success(inverse, params | frozen, held_out)

  state = fit(
      config, folder, mesh, params, loss, make_batch, evaluate, (frozen,)
  )
  assets.save(
      folder / "editor.safetensors",
      jax.device_get(state.ema | frozen),
      {"editor": model.to_json(), "config": json.dumps(config.to_dict())},
  )


def edit_matching(model, params, batch, key, config):
  """Mean squared error of the velocity of `models.editor`, in the region.

  Args:
    model: Editor.
    params: its weights.
    batch: `Triples` as a dict.
    key: PRNG key.
    config: fields `time_shift` and `loss_floor` as in `pretrain`, and `noise`,
      the largest std added to a source in [-1, 1].

  Returns:
    (f32[], {}).
  """
  time_key, noise_key, level_key, grain_key = jax.random.split(key, 4)
  source, target = (
      batch[name].astype(jnp.float32) / 127.5 - 1
      for name in ("source", "target")
  )
  rows = (source.shape[0], 1, 1, 1)
  level = config.noise * jax.random.uniform(level_key, rows)
  source = source + level * jax.random.normal(grain_key, source.shape)
  latents = model.to_latents(params, jnp.concatenate([source, target]))
  z, goal = jnp.split(jax.lax.stop_gradient(latents), 2)
  mask = batch["ids"] != instructions.PAD
  cond = model.encode(params, batch["ids"], mask, z, batch["region"])
  u = jax.random.uniform(time_key, rows)
  share = config.time_shift * u / (1 + (config.time_shift - 1) * u)
  noisy = model.renoised(z, jax.random.normal(noise_key, z.shape))
  x, t = goal + share * (noisy - goal), model.start * share
  v = model.velocity(params, None, x, t[:, 0, 0, 0], cond)
  error = (v - (noisy - goal) / model.start) ** 2
  error = error * (t / jnp.maximum(t, config.loss_floor)) ** 2
  inside = batch["region"][..., None]
  return jnp.sum(error * inside) / (jnp.sum(inside) * z.shape[-1]), {}


def edit_success(inverse, params, data):
  """How often an edit leads where the target shows, by the detector.

  Returns:
    {"edit_success": share of edits after which every thing of the target is
    found within 0.12 of its box}.
  """
  told = [
      instructions.parse(" ".join(
          instructions.WORDS[i] for i in row if i > instructions.END
      ))
      for row in data.ids
  ]
  rows = np.arange(len(told))
  edited, _ = inverse(
      params, None, data.source, told, editing.found_boxes(data.source),
      jax.random.key(0), rows,
  )
  right = [
      all(
          label in found and np.abs(found[label] - box).max() < 0.12
          for label, box in wanted.items()
      )
      for found, wanted in zip(
          editing.found_boxes(edited), editing.found_boxes(data.target),
          strict=True,
      )
  ]
  return {"edit_success": float(np.mean(right))}
