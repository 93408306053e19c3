"""Phases `drawn` and `checker` of the job `reflect`."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spatialrl.data.prompts import Tokens
from spatialrl.io import assets
from spatialrl.io.plots import write_whole
from spatialrl.models import checker as models
from spatialrl.models import editor as editors
from spatialrl.models.build import load_policy
from spatialrl.reflect import checker as checkers
from spatialrl.reflect import editing, questions, scenes
from spatialrl.reflect.actors import Rules
from spatialrl.scenes import grammar
from spatialrl.train.reflect_pool import load_drawn
from spatialrl.train.sampling import Sampler
from spatialrl.train.supervised import fit

_HELD_OUT = 1 << 21  # seed of what is measured on; training seeds are smaller
_CHECKER = 4  # keeps this random stream apart from others


def drawn(config, folder, mesh):
  """Draws images and edits them `edits` times: `drawn.npz`.

  Training prompts and held-out ones. The instructions are the rules' on what
  the oracle finds wrong, so an image that is right stays as it is.
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
    made = [sampler(params, None, prompts, seed)]
    for turn in range(config.edits):
      key = jax.random.fold_in(jax.random.key(seed), turn)
      made.append(_edited(inverse, weights, made[-1], prompts, key,
                          config.sampling.batch))
    out[f"{name}_images"] = np.concatenate(made)
    out[f"{name}_prompts"] = np.array(prompts * len(made))
  file = io.BytesIO()
  np.savez_compressed(file, **out)
  write_whole(folder / "drawn.npz", file.getvalue())


def _edited(inverse, weights, images, prompts, key, batch):
  """What the rules would make of each image, u8[N, S, S, 3]."""
  boxes = editing.found_boxes(images)
  said = checkers.Oracle()(images, prompts)
  told = Rules()(images, prompts, said, boxes, [[]] * len(prompts), key)
  return np.concatenate([
      inverse(
          weights, None, images[rows], [told[i] for i in rows],
          [boxes[i] for i in rows], key, rows,
      )[0][:real]
      for rows, real in checkers.batches(np.arange(len(prompts)), batch)
  ])


def checker(config, folder, mesh):
  """Trains the Checker on what the oracle finds in images of the parts.

  A share `rendered` of the images are renders, the others those of the phase
  `drawn`. The logit is scaled and shifted on drawn images of prompts that are
  kept aside. Writes `checker.safetensors`.
  """
  model = models.CheckerConfig(**config.model.to_dict())
  data = load_drawn(folder.parent, "train")
  count = len(set(data.prompts))
  aside = np.arange(len(data.prompts)) % count < config.aside * count
  kept, learned = data.take(aside), data.take(~aside)

  def make_batch(step):
    rng = np.random.default_rng([config.seed, step, _CHECKER])
    renders = round(config.rendered * config.batch)
    images, labels, found = questions.rendered(rng, renders, model.size)
    images = list(images)
    drawn = config.batch - renders
    for i in rng.integers(len(learned.prompts), size=drawn):
      image, boxes = questions.moved(rng, learned.images[i], learned.boxes[i])
      images.append(image)
      found.append(boxes)
      graph = grammar.parse(learned.prompts[i])
      labels.append([thing.label for thing in graph.things])
    return {"images": np.stack(images)} | questions.pairs(rng, labels, found)

  def loss(params, batch, key):
    images = batch["images"].astype(jnp.float32) / 127.5 - 1
    images += config.noise * jax.random.normal(key, images.shape)
    seen = models.apply(model, params, images, batch["things"])
    here = batch["there"].astype(jnp.float32)

    def wrong(logit, truth):
      return optax.sigmoid_binary_cross_entropy(logit, truth).mean()

    def off(boxes):
      return (jnp.abs(boxes - batch["boxes"]).mean(-1) * here).mean()

    answer = wrong(seen.holds, batch["holds"].astype(jnp.float32))
    sight = wrong(seen.found, here) + wrong(seen.glance_found, here)
    place = off(seen.boxes) + off(seen.glance_boxes)
    value = answer + sight + config.box * place
    return value, {
        "answer": answer, "found": wrong(seen.found, here),
        "off": off(seen.boxes),
    }

  held_out = load_drawn(folder.parent, "held_out")

  def evaluate(params):
    return measure(model, params, held_out, config.eval.batch)

  params = models.init(model, jax.random.key(config.seed))
  state = fit(
      config, folder, mesh, params, loss, make_batch, evaluate,
      family="reflect",
  )
  params = calibrated(model, state.ema, kept, config.eval.batch)
  numbers = evaluate(params)
  print(numbers, flush=True)
  assets.save(
      folder / "checker.safetensors",
      jax.device_get(params),
      {
          "checker": model.to_json(), "measured": json.dumps(numbers),
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
  """The weights with `platt`'s scale and shift of their answers."""
  scale, shift = platt(*answers(model, params, data, batch))
  old = params["calibration"]
  return params | {"calibration": scale * old + shift * jnp.array([0.0, 1.0])}
