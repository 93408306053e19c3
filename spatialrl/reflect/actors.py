"""Actors of the chain: who writes the instruction, with one way to call them.

An actor is called as (images u8[B, S, S, 3], prompts, probability f32[B, R],
boxes, tried, key) and gives B Instructions, None where what it wrote is none;
`tried` is a list of B lists of Instructions that it should not repeat.
"""

import jax
import numpy as np

from spatialrl.models import actor as actors
from spatialrl.reflect import checker, rules
from spatialrl.scenes import grammar, instructions

_ATTEMPTS = 8  # of the rules to say something new
# One program for all Actors of the same sizes.
_sample = jax.jit(
    actors.sample, static_argnums=0, static_argnames="temperature"
)


class Rules:
  """The template of `rules.act`, drawn up to 8 times for something new."""

  def __call__(self, images, prompts, probability, boxes, tried, key):
    del images
    seed = np.asarray(jax.random.bits(key, (2,)))
    rng = np.random.default_rng(seed)
    told = []
    for prompt, row, found, done in zip(
        prompts, probability, boxes, tried, strict=True
    ):
      failed = np.flatnonzero(row <= checker.HOLDS)
      said = None
      for _ in range(_ATTEMPTS if len(failed) else 0):
        said = rules.act(rng, grammar.parse(prompt), failed, found)
        if said not in done:
          break
      told.append(said)
    return told


class Learned:
  """The Actor network, compiled."""

  def __init__(self, config, params, check, *, temperature):
    """Prepares sampling.

    Args:
      config: ActorConfig.
      params: weights.
      check: learned Checker, by whose eyes the things of a prompt are seen.
      temperature: of the draws.
    """
    self.config, self.params = config, params
    self._check, self._temperature = check, temperature

  def __call__(self, images, prompts, probability, boxes, tried, key):
    del boxes
    words = self.draw(
        self.params, self.context(images, prompts, probability, tried), key
    )
    return read(words, prompts)

  def draw(self, params, context, key):
    """Token ids i32[B, LENGTH] of one instruction a row."""
    return _sample(
        self.config, params, context, key, temperature=self._temperature
    )

  def context(self, images, prompts, probability, tried=None):
    """What the network knows, a `models.actor.Context` of numpy arrays."""
    tried = tried or [[]] * len(prompts)
    things, predicates = checker.asked(prompts)
    there, boxes = self._check.sight(images, prompts)
    return actors.Context(
        images=np.asarray(images, np.float32) / 127.5 - 1,
        things=things,
        sight=np.concatenate([there[..., None], boxes], -1),
        predicates=predicates,
        verdict=np.where(predicates < 0, 1, probability).astype(np.float32),
        choices=np.stack([
            _choices(prompt, done)
            for prompt, done in zip(prompts, tried, strict=True)
        ]),
    )


def _choices(prompt, tried):
  """Token ids i32[N, T] of what may be written, all of it once all was tried.

  The last one fills the rows. A swap told the other way round is another one.
  """
  every = instructions.choices(grammar.parse(prompt))
  left = [choice for choice in every if choice not in tried] or every
  return instructions.encode(left + left[-1:] * (len(every) - len(left)))


def read(words, prompts):
  """Instructions of token ids i32[B, LENGTH]; None where they are none."""
  return [
      instructions.decode(row, grammar.parse(prompt))
      for row, prompt in zip(np.asarray(words), prompts, strict=True)
  ]
