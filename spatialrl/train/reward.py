"""Job `reward`: a SpatialScore reward model from preference pairs.

With `data.kind` "captions" the same backbone and loss learn only which of two
captions belongs to an image: the control that shows what the pairs are worth.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import scenes, tokenizers
from spatialrl.io import assets
from spatialrl.models import reward_model
from spatialrl.models.build import load_reward
from spatialrl.parallel import distributed
from spatialrl.parallel import mesh as meshes
from spatialrl.rl.preference import PREFERENCE_LOSSES
from spatialrl.train import reward_images
from spatialrl.train.configs import world_of
from spatialrl.train.supervised import fit

KINDS = ("pairs", "captions")
HELD_OUT_SEED = 1 << 20  # evaluation pairs share no seed with training


def run(config, workdir, mesh):
  """Trains from scratch, or from `config.init`, and exports the average.

  Writes `reward.safetensors` in the workdir. With `world` "images" it is
  `reward_images` that runs.
  """
  if config.loss not in PREFERENCE_LOSSES:
    raise ValueError(
        f"loss is {config.loss!r}; allowed are {sorted(PREFERENCE_LOSSES)}."
    )
  if world_of(config) == "images":
    score = functools.partial(compare, name=config.loss)
    return reward_images.run(config, workdir, mesh, score)
  if config.data.kind not in KINDS:
    raise ValueError(
        f"data.kind is {config.data.kind!r}; allowed are {KINDS}."
    )
  if not 0 <= config.data.things_share < 1:
    raise ValueError(
        f"data.things_share is {config.data.things_share}; allowed is 0 up to,"
        " and without, 1."
    )
  if config.batch % 2:
    raise ValueError(f"batch is {config.batch}; it must be even.")
  tokenizer = tokenizers.load()
  model = reward_model.RewardConfig(
      vocabulary=len(tokenizer), **config.reward.to_dict()
  )
  params = reward_model.init(model, jax.random.key(config.seed))
  if config.init:
    stored, params = load_reward(config.init)
    if stored != model:
      raise ValueError(
          f"init is {config.init!r}, a model of {stored}; the field reward and"
          f" the tokenizer need {model}."
      )
  make_batch = {"pairs": _preferences, "captions": _captions}[config.data.kind]

  def loss(params, batch, key):
    noise_key, level_key = jax.random.split(key)
    images = batch["images"].astype(jnp.float32) / 127.5 - 1
    rows = images.shape[0]
    level = jax.random.uniform(level_key, (rows, 1, 1, 1, 1))
    level = config.data.noise * level
    images = images + level * jax.random.normal(noise_key, images.shape)
    # Winner and loser in one call: one larger matmul instead of two.
    mu, log_sigma = reward_model.log_score(
        model,
        params,
        images.reshape(2 * rows, *images.shape[2:]),
        batch["ids"].reshape(2 * rows, -1),
        batch["mask"].reshape(2 * rows, -1),
    )
    mu, log_sigma = mu.reshape(rows, 2), log_sigma.reshape(rows, 2)
    return compare(mu, log_sigma, config.loss)

  rater = Rater(
      functools.partial(reward_model.score, model), model.max_tokens, mesh,
      config.eval.batch,
  )

  def evaluate(params):
    accuracy = {
        f"pair_accuracy_{name}": pair_accuracy(
            rater, params, config.eval.pairs, model.size, perturbed, relations
        )
        for name, (perturbed, relations) in SPLITS.items()
    }
    things = thing_accuracy(rater, params, config.eval.pairs, model.size)
    return accuracy | {"pair_accuracy_things": things}

  state = fit(
      config, workdir, mesh, params, loss,
      lambda step: make_batch(config, model, tokenizer, step), evaluate,
  )
  assets.save(
      f"{workdir}/reward.safetensors",
      distributed.to_host(state.ema),
      {"reward": model.to_json(), "config": json.dumps(config.to_dict())},
  )


def compare(mu, log_sigma, name):
  """The loss of comparisons.

  Args:
    mu: f32[B, 2], mean score of the winner and of the loser.
    log_sigma: f32[B, 2], logarithm of its standard deviation.
    name: key of PREFERENCE_LOSSES.

  Returns:
    (f32[], dict of f32[]).
  """
  preference = PREFERENCE_LOSSES[name]
  if name == "bradley_terry":
    value = preference(mu[:, 0], mu[:, 1])
  else:
    value = preference(mu[:, 0], log_sigma[:, 0], mu[:, 1], log_sigma[:, 1])
  right = jnp.mean((mu[:, 0] > mu[:, 1]).astype(jnp.float32))
  sigma = jnp.mean(jnp.exp(log_sigma))
  return jnp.mean(value), {"accuracy": right, "sigma": sigma}


# Perturbed relations and relations of the prompt, as SpatialScore's benchmark
# splits its pairs (arXiv:2602.24233, table 1).
SPLITS = {"1": ((1, 1), (1, 2, 3)), "2_3": ((2, 3), (2, 3))}


def pair_accuracy(rater, params, pairs, size, perturbed, relations):
  """Share of held-out pairs in which the perfect image scores higher.

  The labels of every related pair of things were never related in training.
  """
  data = scenes.reward_pairs(
      HELD_OUT_SEED, 0, pairs, size=size, relations=relations,
      perturbed=perturbed, held_out=True,
  )
  better, _ = rater(params, data.perfect, data.prompts)
  worse, _ = rater(params, data.perturbed, data.prompts)
  return float(np.mean(better > worse))


def thing_accuracy(rater, params, pairs, size):
  """Share of new scenes scored above the same with another colour or shape."""
  data = scenes.thing_pairs(
      HELD_OUT_SEED, 0, pairs, size=size, relations=(1, 2, 3)
  )
  better, _ = rater(params, data.perfect, data.prompts)
  worse, _ = rater(params, data.perturbed, data.prompts)
  return float(np.mean(better > worse))


class Rater:
  """A compiled scorer; call it with weights, images and prompts."""

  def __init__(self, score, max_tokens, mesh, batch):
    """Prepares scoring in batches of `batch` rows.

    Args:
      score: (weights, images f32[B, S, S, 3], ids i32[B, L], mask bool[B, L])
        -> tuple of arrays with a leading axis B.
      max_tokens: L.
      mesh: the mesh in use.
      batch: B.
    """
    meshes.check_divides(mesh, "eval.batch", batch)
    self._tokenizer, self._max_tokens = tokenizers.load(), max_tokens
    self._batch, rows = batch, meshes.batched(mesh)

    def run(params, images, ids, mask):
      images = images.astype(jnp.float32) / 127.5 - 1
      images, ids, mask = jax.lax.with_sharding_constraint(
          (images, ids, mask), rows
      )
      return score(params, images, ids, mask)

    self._score = jax.jit(run, out_shardings=meshes.replicated(mesh))

  def __call__(self, params, images, prompts):
    """What `score` gives for u8[N, S, S, 3] under N prompts, as numpy."""
    ids, mask = tokenizers.encode(self._tokenizer, prompts, self._max_tokens)
    out = []
    for start in range(0, len(prompts), self._batch):
      rows = np.arange(start, start + self._batch) % len(prompts)
      part = self._score(params, images[rows], ids[rows], mask[rows])
      out.append(jax.device_get(part))
    return tuple(
        np.concatenate(parts)[: len(prompts)]
        for parts in zip(*out, strict=True)
    )


def _preferences(config, model, tokenizer, step):
  """Winner and loser of one prompt: images u8[B, 2, S, S, 3].

  Every pair stands twice, the second time under the perturbed prompt, where
  the perturbed image wins: no image is better by itself.
  """
  relations = _relations(config, step)
  things = round(config.batch // 2 * config.data.things_share)
  related = scenes.reward_pairs(
      config.seed, step, config.batch // 2 - things, size=model.size,
      relations=(relations,), perturbed=tuple(config.data.perturbed),
  )
  made = [related]
  if things:
    made.append(scenes.thing_pairs(
        config.seed, step, things, size=model.size, relations=(relations,)
    ))
  first, second = (
      np.concatenate([getattr(pairs, side) for pairs in made])
      for side in ("perfect", "perturbed")
  )
  prompts = [p for pairs in made for p in pairs.prompts]
  prompts += [p for pairs in made for p in pairs.perturbed_prompts]
  length = tokenizers.caption_tokens(relations)
  ids, mask = tokenizers.encode(tokenizer, prompts, length)
  winner = np.concatenate([first, second])
  loser = np.concatenate([second, first])
  return {
      "images": np.stack([winner, loser], axis=1),
      "ids": np.stack([ids, ids], axis=1),
      "mask": np.stack([mask, mask], axis=1),
  }


def _captions(config, model, tokenizer, step):
  """One image under its own caption and under its neighbour's."""
  relations = _relations(config, step)
  images, captions, _ = scenes.captioned_scenes(
      config.seed, step, config.batch, size=model.size,
      relations=(relations,), wrong_share=config.data.wrong_share,
  )
  length = tokenizers.caption_tokens(relations)
  ids, mask = tokenizers.encode(tokenizer, captions, length)
  return {
      "images": np.stack([images, images], axis=1),
      "ids": np.stack([ids, np.roll(ids, 1, axis=0)], axis=1),
      "mask": np.stack([mask, np.roll(mask, 1, axis=0)], axis=1),
  }


def _relations(config, step):
  """One number of relations a batch, so that short prompts are not padded."""
  return config.data.relations[step % len(config.data.relations)]
