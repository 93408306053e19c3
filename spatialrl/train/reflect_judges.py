"""Phases `drawn`, `checker` and `actor` of the job `reflect`."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spatialrl.data import tokenizers
from spatialrl.data.prompts import Tokens
from spatialrl.io import assets
from spatialrl.io.plots import write_whole
from spatialrl.models import actor as actors
from spatialrl.models import editor as editors
from spatialrl.models import reward_model
from spatialrl.models.build import load_policy, load_reward
from spatialrl.reflect import checker as checkers
from spatialrl.reflect import editing, questions, scenes
from spatialrl.reflect.actors import Learned, Rules, read
from spatialrl.scenes import grammar
from spatialrl.train.reflect_pool import Drawn, load_drawn
from spatialrl.train.sampling import Sampler
from spatialrl.train.supervised import fit

_HELD_OUT = 1 << 21  # seed of what is measured on; training seeds are smaller
_CHECKER, _ACTOR = 4, 5  # keep the random streams apart


def drawn(config, folder, mesh):
  """Draws images and edits them once, for training and held out: `drawn.npz`.
  """
  root = folder.parent
  policy, params = load_policy(root / "diffuser/policy.safetensors")
  model, weights = editors.load(root / "editor/editor.safetensors")
  sampler = Sampler(policy, Tokens(scenes.TOKENS), mesh, config.sampling)
  inverse = editing.Inverse(model, steps=config.edit.steps,
                            shift=config.edit.shift)
  params, weights = jax.device_put((params, weights))
  out = {}
  for name, seed, count in (
      ("train", config.seed, config.train),
      ("held_out", _HELD_OUT, config.held_out),
  ):
    prompts = scenes.prompts(seed, count, held_out=name == "held_out")
    images = sampler(params, None, prompts, seed)
    boxes = editing.found_boxes(images)
    key, batch = jax.random.key(seed), config.sampling.batch
    said = checkers.Oracle()(images, prompts)
    told = Rules()(images, prompts, said, boxes, key)
    edited = np.concatenate([
        inverse(
            weights, None, images[rows], [told[i] for i in rows],
            [boxes[i] for i in rows], key, rows,
        )[0][:real]
        for rows, real in checkers.batches(np.arange(count), batch)
    ])
    out[f"{name}_images"] = np.concatenate([images, edited])
    out[f"{name}_prompts"] = np.array(prompts + prompts)
  file = io.BytesIO()
  np.savez_compressed(file, **out)
  write_whole(folder / "drawn.npz", file.getvalue())


def checker(config, folder, mesh):
  """Trains the reward's backbone to answer one relation at a time.

  Half of the images are those of the phase `drawn`, half rendered; the answers
  are the oracle's. The logit is scaled and shifted on drawn images that are
  kept aside: before, since the reward's scores are no logits, and after.
  Writes `checker.safetensors`.
  """
  model, params = _reward(config)
  data = load_drawn(folder.parent, "train")
  tokenizer = tokenizers.load()
  aside = int(len(data.prompts) * config.aside)

  def make_batch(step):
    rng = np.random.default_rng([config.seed, step, _CHECKER])
    half = config.batch // 2
    images, asked = [], []
    for i in rng.integers(aside, len(data.prompts), half):
      image, found = data.images[i], data.boxes[i]
      if rng.uniform() < 0.5:
        image, found = questions.mirrored(image, found)
      images.append(image)
      asked.append(questions.ask(rng, grammar.parse(data.prompts[i]), found))
    more, shown = questions.rendered(rng, config.batch - half, model.size)
    asked += [questions.ask(rng, graph, found) for graph, found in shown]
    text, truth = zip(*asked, strict=True)
    ids, mask = tokenizers.encode(tokenizer, text, checkers.TOKENS)
    return {
        "images": np.concatenate([np.stack(images), more]),
        "ids": ids, "mask": mask, "truth": np.array(truth),
    }

  def loss(params, batch, key):
    images = batch["images"].astype(jnp.float32) / 127.5 - 1
    images += config.noise * jax.random.normal(key, images.shape)
    logit, _ = reward_model.score(
        model, params, images, batch["ids"], batch["mask"]
    )
    truth = batch["truth"].astype(jnp.float32)
    error = optax.sigmoid_binary_cross_entropy(logit, truth)
    right = (logit > 0) == batch["truth"]
    return error.mean(), {"accuracy": right.mean()}

  held_out = load_drawn(folder.parent, "held_out")
  kept = Drawn(data.images[:aside], data.prompts[:aside], data.boxes[:aside])
  params = calibrated(model, params, kept, config.eval.batch)

  def evaluate(params):
    return measure(model, params, held_out, config.eval.batch)

  state = fit(config, folder, mesh, params, loss, make_batch, evaluate)
  params = calibrated(model, state.ema, kept, config.eval.batch)
  numbers = evaluate(params)
  print(numbers, flush=True)
  assets.save(
      folder / "checker.safetensors",
      jax.device_get(params),
      {
          "reward": model.to_json(), "measured": json.dumps(numbers),
          "config": json.dumps(config.to_dict()),
      },
      dtype=np.float32,
  )


def answers(model, params, data, batch):
  """The Checker's logits and the oracle's answers: (f32[M], bool[M]), flat."""
  said = checkers.in_batches(
      checkers.Checker(model, params).logits, data.images, data.prompts, batch
  )
  truth = checkers.Oracle()(data.images, data.prompts)
  asked = ~np.isnan(said)
  return said[asked], truth[asked] > 0


def measure(model, params, data, batch):
  """`checker.calibration` of the Checker on drawn images."""
  logit, truth = answers(model, params, data, batch)
  return checkers.calibration(np.asarray(jax.nn.sigmoid(logit)), truth)


def platt(logit, truth):
  """Scale and shift of a logit that make it calibrated (Platt, 1999).

  Args:
    logit: f32[M].
    truth: bool[M].

  Returns:
    f64[2], the logistic regression of the truth, by Newton's steps.
  """
  middle, width = logit.mean(), logit.std() + 1e-6
  design = np.stack([(logit - middle) / width, np.ones(len(logit))], 1)
  fitted, ridge = np.zeros(2), 1e-2 * np.eye(2)
  for _ in range(20):
    chance = 1 / (1 + np.exp(-design @ fitted))
    curve = (design * (chance * (1 - chance))[:, None]).T @ design + ridge
    pull = design.T @ (chance - truth) + ridge @ fitted
    fitted = fitted - np.linalg.solve(curve, pull)
  return np.array([fitted[0] / width, fitted[1] - fitted[0] * middle / width])


def calibrated(model, params, data, batch):
  """The weights with `platt`'s scale and shift folded into the head."""
  scale, shift = platt(*answers(model, params, data, batch))
  head = jax.tree.map(jnp.asarray, params["head_out"])
  kernel = head["kernel"].at[:, 0].multiply(scale)
  bias = head["bias"].at[0].set(scale * head["bias"][0] + shift)
  return params | {"head_out": {"kernel": kernel, "bias": bias}}


def actor(config, folder, mesh):
  """Warm start of the Actor: the words of `rules.act` on rendered scenes.

  Writes `actor.safetensors`.
  """
  model, reward = _reward(config)
  params = actors.init(model, jax.random.key(config.seed), reward)
  tokenizer = tokenizers.load()

  def make_batch(step):
    return questions.imitations(
        [config.seed, step, _ACTOR], config.batch, model.size, tokenizer
    )

  def loss(params, batch, key):
    images = batch["images"].astype(jnp.float32) / 127.5 - 1
    images += config.noise * jax.random.normal(key, images.shape)
    context = (images, batch["ids"], batch["mask"], batch["verdict"])
    chosen, _ = actors.log_probs(model, params, context, batch["words"])
    said = actors.tokens(batch["words"])
    return -jnp.sum(chosen * said) / jnp.sum(said), {}

  test = questions.imitations(
      [_HELD_OUT, 0, _ACTOR], config.eval.rows, model.size, tokenizer
  )

  def evaluate(params):
    speaker = Learned(model, params, temperature=1.0)
    context = (test["images"].astype(np.float32) / 127.5 - 1,
               *(test[name] for name in ("ids", "mask", "verdict")))
    words = speaker.draw(params, context, jax.random.key(0))
    told = read(words, test["prompts"].tolist())
    return {"valid": float(np.mean([t is not None for t in told]))}

  def numbers(step):
    batch = make_batch(step)
    del batch["prompts"]
    return batch

  state = fit(config, folder, mesh, params, loss, numbers, evaluate)
  assets.save(
      folder / "actor.safetensors",
      jax.device_get(state.ema),
      {"actor": model.to_json(), "config": json.dumps(config.to_dict())},
      dtype=np.float32,
  )


def _reward(config):
  """(RewardConfig, weights) that checker and Actor start from."""
  if config.init:
    return load_reward(config.init)
  model = reward_model.RewardConfig(
      vocabulary=len(tokenizers.load()), **config.reward.to_dict()
  )
  return model, reward_model.init(model, jax.random.key(config.seed))
