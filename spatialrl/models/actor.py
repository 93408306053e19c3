"""The Actor: an autoregressive policy over the words of an edit instruction.

A prefix language model: the image's patches and the prompt, in which every
word carries the Checker's verdict on its clause, see each other; the words of
the instruction see them and the words before. Sizes and embeddings are those
of the reward model, whose weights it starts from. RL-RIG's Actor is a
vision-language model; this one is ours.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spatialrl.models.reward_model import RewardConfig, to_patches
from spatialrl.models.text_encoder import TransformerBlock
from spatialrl.scenes import instructions

_START = instructions.PAD  # what the first word follows


class Actor(nn.Module):
  """Logits of every word of an instruction.

  Call with images f32[B, S, S, 3] in [-1, 1], ids i32[B, L] and mask
  bool[B, L] of the prompt, verdict f32[B, L], the probability that the clause
  of a word holds, and words i32[B, T]; returns f32[B, T, V], the logits of
  word k given those before it.
  """

  config: RewardConfig

  @nn.compact
  def __call__(self, images, ids, mask, verdict, words):
    c = self.config
    side = c.size // c.patch
    x = nn.Dense(c.width, name="patches")(to_patches(c, images))
    unit = nn.initializers.normal(1.0)
    x = x + self.param("positions", unit, (side * side, c.width))[None]
    table = self.param("words", unit, (c.vocabulary, c.width))
    places = self.param("places", unit, (c.max_tokens, c.width))
    holds = self.param("holds", unit, (c.width,))
    text = table[ids] + places[None, : ids.shape[1]]
    text = text + (2 * verdict - 1)[..., None] * holds[None, None]
    length = words.shape[1]
    said = jnp.pad(words[:, :-1], ((0, 0), (1, 0)), constant_values=_START)
    steps = self.param("steps", unit, (instructions.LENGTH, c.width))
    spoken = self.param("spoken", unit, (len(instructions.WORDS), c.width))
    said = spoken[said] + steps[None, :length]
    x = jnp.concatenate([x, text, said], axis=1)
    seen = _mask(mask, side**2, length)
    for i in range(c.depth):
      x = TransformerBlock(c.width, c.heads, name=f"block_{i}")(x, seen)
    x = nn.LayerNorm(epsilon=1e-6, name="norm")(x[:, -length:])
    return nn.Dense(len(instructions.WORDS), name="out")(x)


def init(config, key, reward=None):
  """Random weights, or those of a reward model where it has the same."""
  images = jnp.zeros((1, config.size, config.size, 3))
  ids = jnp.zeros((1, config.max_tokens), jnp.int32)
  words = jnp.zeros((1, instructions.LENGTH), jnp.int32)
  params = Actor(config).init(
      key, images, ids, ids == 0, jnp.zeros(ids.shape), words
  )["params"]
  known = (reward or {}).get("backbone", {})
  return params | {name: known[name] for name in params if name in known}


def log_probs(config, params, context, words):
  """log p of the given words, f32[B, T]; see `Actor` for the arguments.

  Args:
    config: RewardConfig.
    params: weights.
    context: (images, ids, mask, verdict).
    words: i32[B, T].

  Returns:
    (f32[B, T], entropy f32[B, T]).
  """
  logits = Actor(config).apply({"params": params}, *context, words)
  table = jax.nn.log_softmax(logits.astype(jnp.float32))
  chosen = jnp.take_along_axis(table, words[..., None], axis=-1)[..., 0]
  return chosen, -jnp.sum(jnp.exp(table) * table, -1)


def sample(config, params, context, key, *, temperature=1.0):
  """Draws an instruction for each row.

  Args:
    config: RewardConfig.
    params: weights.
    context: (images, ids, mask, verdict).
    key: PRNG key.
    temperature: of the draw; 0 takes the likeliest word.

  Returns:
    i32[B, T]; PAD after the first END.
  """
  rows = context[0].shape[0]

  def step(carry, k):
    words, over = carry
    logits = Actor(config).apply({"params": params}, *context, words)[:, k]
    if temperature:
      drawn = jax.random.categorical(
          jax.random.fold_in(key, k), logits / temperature
      )
    else:
      drawn = jnp.argmax(logits, -1)
    drawn = jnp.where(over, instructions.PAD, drawn)
    return (words.at[:, k].set(drawn), over | (drawn == instructions.END)), None

  words = jnp.zeros((rows, instructions.LENGTH), jnp.int32)
  start = (words, jnp.zeros(rows, bool))
  (words, _), _ = jax.lax.scan(step, start, jnp.arange(instructions.LENGTH))
  return words


def tokens(words):
  """Which tokens were decided: those up to the first END, bool[B, T]."""
  ended = jnp.cumsum(words == instructions.END, axis=1)
  return (ended == 0) | ((ended == 1) & (words == instructions.END))


def _mask(mask, image, length):
  """bool[B, N, N]: the prefix sees itself, a word all before it as well."""
  rows, text = mask.shape
  prefix = jnp.concatenate([jnp.ones((rows, image), bool), mask], 1)
  before = jnp.tril(jnp.ones((length, length), bool))
  causal = jnp.concatenate([jnp.zeros((image + text, length), bool), before])
  prefix = jnp.broadcast_to(
      prefix[:, None], (rows, image + text + length, image + text)
  )
  causal = jnp.broadcast_to(causal[None], (rows, *causal.shape))
  return jnp.concatenate([prefix, causal], 2)


