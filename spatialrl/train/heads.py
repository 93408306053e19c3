"""Job `heads`: aspects and a map of flaws, on a frozen reward backbone.

Every pair of images is judged under one prompt: pairs that differ in a relation
train one score, pairs that differ in a thing another, and images against their
degraded copies a third. The map learns where, in the image that contradicts the
prompt, the things stand that contradict it.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import scenes, tokenizers
from spatialrl.io import assets
from spatialrl.models import reward_heads
from spatialrl.models.build import load_reward
from spatialrl.parallel import distributed, partition
from spatialrl.rl.preference import bradley_terry
from spatialrl.scenes.layout import coverage
from spatialrl.train.reward import HELD_OUT_SEED, Rater
from spatialrl.train.supervised import fit

_RELATIONS, _THINGS = 0, 1  # kinds of pairs, indices into ASPECTS


def run(config, workdir, mesh):
  """Trains the heads of `config.reward` and writes `heads.safetensors`."""
  if config.batch % 4:
    raise ValueError(f"batch is {config.batch}; it must be a multiple of 4.")
  model, backbone = load_reward(config.reward)
  backbone = partition.place(mesh, "scenes", backbone)
  tokenizer = tokenizers.load()
  heads = reward_heads.init(model, jax.random.key(config.seed))

  def loss(heads, batch, key, backbone):
    noise_key, level_key, bad_key = jax.random.split(key, 3)
    images = batch["images"].astype(jnp.float32) / 127.5 - 1
    rows = images.shape[0]
    worse = reward_heads.degraded(
        images[:, 0], bad_key, noise=config.data.noise
    )
    images = jnp.concatenate([images[:, 0], images[:, 1], worse])
    # As in the reward's own training: a little noise on all.
    level = config.data.noise * jax.random.uniform(level_key, (rows, 1, 1, 1))
    level = jnp.tile(level, (3, 1, 1, 1))
    images = images + level * jax.random.normal(noise_key, images.shape)
    scores, flaws = reward_heads.judge(
        model, backbone, heads, images,
        jnp.tile(batch["ids"], (3, 1)), jnp.tile(batch["mask"], (3, 1)),
    )
    winner, loser, blurred = jnp.split(scores, 3)
    gains = bradley_terry(winner, loser)
    parts = {
        "relations_loss": jnp.mean(gains[:, _RELATIONS], where=batch["about"]),
        "things_loss": jnp.mean(gains[:, _THINGS], where=~batch["about"]),
        "quality_loss": jnp.mean(bradley_terry(winner[:, 2], blurred[:, 2])),
    }
    right, wrong, _ = jnp.split(flaws, 3)
    # log(1 + e^x) - x y, the cross-entropy of a logit x.
    missed = jax.nn.softplus(wrong) - wrong * batch["flaws"]
    parts["flaws_loss"] = jnp.mean(jax.nn.softplus(right)) + jnp.mean(missed)
    return sum(parts.values()), parts

  rater = Rater(
      lambda params, *inputs: reward_heads.judge(model, *params, *inputs),
      model.max_tokens, mesh, config.eval.batch,
  )
  state = fit(
      config, workdir, mesh, heads, loss,
      lambda step: _batch(config, model, tokenizer, step),
      lambda heads: evaluate(
          rater, (backbone, heads), config.eval.pairs, model
      ),
      (backbone,),
  )
  assets.save(
      f"{workdir}/heads.safetensors",
      distributed.to_host(state.ema),
      {
          "heads": json.dumps(reward_heads.ASPECTS),
          "reward_digest": assets.digest(config.reward),
          "config": json.dumps(config.to_dict()),
      },
  )


def evaluate(rater, params, pairs, model):
  """Accuracies on held-out pairs, and how well the map finds the flaws.

  Args:
    rater: Rater of `reward_heads.judge`.
    params: (those of the backbone, those of the heads).
    pairs: number of pairs of a kind.
    model: RewardConfig.

  Returns:
    dict of floats: pair accuracy by aspect; `pointing`, the share of wrong
    images whose most flawed place touches a thing that is wrong; `flaw_auc`,
    the chance that a place of such a thing is marked above a free place.
  """
  relations = scenes.reward_pairs(
      HELD_OUT_SEED, 0, pairs, size=model.size, relations=(1, 2, 3),
      held_out=True,
  )
  things = scenes.thing_pairs(
      HELD_OUT_SEED, 0, pairs, size=model.size, relations=(1, 2, 3)
  )
  values = {}
  for index, data in ((_RELATIONS, relations), (_THINGS, things)):
    better, _ = rater(params, data.perfect, data.prompts)
    worse, flaws = rater(params, data.perturbed, data.prompts)
    name = reward_heads.ASPECTS[index]
    values[f"pair_accuracy_{name}"] = float(
        np.mean(better[:, index] > worse[:, index])
    )
    side = flaws.shape[-1]
    truth = np.stack([coverage(b, side) for b in data.perturbed_boxes])
    values[f"pointing_{name}"], values[f"flaw_auc_{name}"] = found(flaws, truth)
  return values


def found(flaws, truth):
  """(share of maps that peak on a flaw, AUC of flawed against free cells).

  A cell is flawed that is covered at least half as much as the image's most
  covered one; what is covered less is not asked about.

  Args:
    flaws: f32[N, h, w], any increasing function of the chance of a flaw.
    truth: f32[N, h, w], share of each cell that a flawed thing covers.
  """
  flat, covered = flaws.reshape(len(flaws), -1), truth.reshape(len(truth), -1)
  peak = flat.argmax(1)
  pointing = np.mean(covered[np.arange(len(flat)), peak] > 0)
  flawed = covered > 0.5 * covered.max(1, keepdims=True)
  values = np.concatenate([flat[flawed], flat[covered == 0]])
  positive = flawed.sum()
  ranks = np.empty(len(values))
  ranks[np.argsort(values, kind="stable")] = np.arange(1, len(values) + 1)
  wins = ranks[:positive].sum() - positive * (positive + 1) / 2
  return float(pointing), float(wins / (positive * (len(values) - positive)))


def _batch(config, model, tokenizer, step):
  """Winner and loser of a prompt: images u8[B, 2, S, S, 3], B = batch.

  Every pair stands twice, under either prompt, as in the job `reward`.
  """
  number = config.data.relations[step % len(config.data.relations)]
  half = config.batch // 4
  made = [
      scenes.reward_pairs(
          config.seed, step, half, size=model.size, relations=(number,)
      ),
      scenes.thing_pairs(
          config.seed, step, half, size=model.size, relations=(number,)
      ),
  ]
  side = model.size // model.patch
  rows = {"images": [], "flaws": [], "about": [], "prompts": []}
  for pairs, about in zip(made, (True, False), strict=True):
    for winner, loser, boxes, prompts in (
        (pairs.perfect, pairs.perturbed, pairs.perturbed_boxes, pairs.prompts),
        (
            pairs.perturbed, pairs.perfect, pairs.perfect_boxes,
            pairs.perturbed_prompts,
        ),
    ):
      rows["images"].append(np.stack([winner, loser], 1))
      rows["flaws"].append(np.stack([coverage(b, side) for b in boxes]))
      rows["about"].append(np.full(len(prompts), about))
      rows["prompts"] += prompts
  length = tokenizers.caption_tokens(number)
  ids, mask = tokenizers.encode(tokenizer, rows.pop("prompts"), length)
  joined = {name: np.concatenate(parts) for name, parts in rows.items()}
  return joined | {"ids": ids, "mask": mask}
