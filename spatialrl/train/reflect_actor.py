"""Phase `actor` of the job `reflect`: the Actor before Reflection-GRPO."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.io import assets
from spatialrl.models import actor as actors
from spatialrl.reflect import checker as checkers
from spatialrl.reflect import rules
from spatialrl.reflect.actors import Learned
from spatialrl.reflect.checker import HOLDS
from spatialrl.scenes import grammar, instructions
from spatialrl.train.reflect_pool import load_checker, open_pool
from spatialrl.train.supervised import fit

_ACTOR = 5  # keeps this random stream apart from others


def actor(config, folder, mesh):
  """Warm start of the Actor: the words of `rules.act` on drawn images.

  The rules hear the Checker and see with its eyes, so nothing of the oracle is
  in what they say. Writes `actor.safetensors`.
  """
  model = actors.ActorConfig(**config.model.to_dict())
  params = actors.init(model, jax.random.key(config.seed))
  check = load_checker(folder.parent)
  lessons, test = (
      _Lessons(open_pool(folder.parent, name, check, config.batch),
               Learned(model, params, check, temperature=1.0), config.batch)
      for name in ("train", "held_out")
  )

  def make_batch(step):
    return lessons.draw([config.seed, step, _ACTOR], config.batch)

  def loss(params, batch, key):
    images = batch["context"].images
    images += config.noise * jax.random.normal(key, images.shape)
    context = batch["context"]._replace(images=images)
    chosen, _ = actors.log_probs(model, params, context, batch["words"])
    said = actors.tokens(batch["words"])
    return -jnp.sum(chosen * said) / jnp.sum(said), {}

  fixed = test.draw([config.seed, _ACTOR], config.eval.rows)

  @jax.jit
  def held_out(params):
    return loss(params, fixed, jax.random.key(0))[0]

  state = fit(
      config, folder, mesh, params, loss, make_batch,
      lambda params: {"held_out_loss": float(held_out(params))},
      family="reflect",
  )
  assets.save(
      folder / "actor.safetensors",
      jax.device_get(state.ema),
      {"actor": model.to_json(), "config": json.dumps(config.to_dict())},
      dtype=np.float32,
  )


class _Lessons:
  """The images of a Pool, and what the rules say of them."""

  def __init__(self, pool, speaker, batch):
    parts = []
    for rows, real in checkers.batches(np.arange(len(pool.prompts)), batch):
      part = pool.take(rows)
      context = speaker.context(part.images, part.prompts, part.probability)
      parts.append(jax.tree.map(lambda x, real=real: x[:real], context))
    self._context = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    self._graphs = [grammar.parse(prompt) for prompt in pool.prompts]
    self._boxes = pool.boxes

  def draw(self, seed, batch):
    """dict of context and words i32[batch, LENGTH]."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(self._graphs), size=batch)
    context = jax.tree.map(lambda x: x[rows], self._context)
    told = [
        rules.act(rng, self._graphs[i], np.flatnonzero(verdict <= HOLDS),
                  self._boxes[i])
        for i, verdict in zip(rows, context.verdict, strict=True)
    ]
    return {"context": context, "words": instructions.encode(told)}
