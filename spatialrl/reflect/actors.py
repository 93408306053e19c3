"""Actors of the chain: who writes the instruction, with one way to call them.

An actor is called as (images u8[B, S, S, 3], prompts, probability f32[B, R],
boxes, key) and gives B Instructions, None where what it wrote is none.
"""

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import tokenizers
from spatialrl.models import actor as actors
from spatialrl.reflect import checker, rules, scenes
from spatialrl.scenes import grammar, instructions

# One program for all Actors of the same sizes.
_sample = jax.jit(
    actors.sample, static_argnums=0, static_argnames="temperature"
)


class Rules:
  """The template of `rules.act` on what the detector finds."""

  def __call__(self, images, prompts, probability, boxes, key):
    del images
    seed = np.asarray(jax.random.bits(key, (2,)))
    rng = np.random.default_rng(seed)
    told = []
    for prompt, row, found in zip(prompts, probability, boxes, strict=True):
      failed = np.flatnonzero(row <= checker.HOLDS)
      told.append(
          rules.act(rng, grammar.parse(prompt), failed, found)
          if len(failed) else None
      )
    return told


class Learned:
  """The Actor network, compiled."""

  def __init__(self, config, params, *, temperature):
    """Args: RewardConfig, weights, and the temperature of its draws."""
    self.config, self.params = config, params
    self._temperature = temperature
    self._tokenizer = tokenizers.load()

  def __call__(self, images, prompts, probability, boxes, key):
    del boxes
    words = self.draw(
        self.params, self.context(images, prompts, probability), key
    )
    return read(words, prompts)

  def draw(self, params, context, key):
    """Token ids i32[B, LENGTH] of one instruction a row."""
    return _sample(
        self.config, params, context, key, temperature=self._temperature
    )

  def context(self, images, prompts, probability):
    """What the network sees: (images, ids, mask, verdict) of `models.actor`."""
    ids, mask = tokenizers.encode(self._tokenizer, prompts, scenes.TOKENS)
    return (
        jnp.asarray(images, jnp.float32) / 127.5 - 1, ids, mask,
        spread(prompts, probability),
    )


def read(words, prompts):
  """Instructions of token ids i32[B, LENGTH]; None where they are none."""
  return [
      instructions.decode(row, grammar.parse(prompt))
      for row, prompt in zip(np.asarray(words), prompts, strict=True)
  ]


def spread(prompts, probability):
  """Each word's probability that its clause holds: f32[B, scenes.TOKENS].

  A clause and the comma after it take as many tokens as it has words without
  articles, and one for the comma.
  """
  out = np.ones((len(prompts), scenes.TOKENS), np.float32)
  for row, prompt, told in zip(out, prompts, probability, strict=True):
    start = 0
    for clause, value in zip(prompt.split(", "), told, strict=False):
      length = 1 + sum(w not in grammar.ARTICLES for w in clause.split())
      row[start : start + length] = value
      start += length
  return out
