"""The Actor: an autoregressive policy over the words of an edit instruction.

A prefix language model: the image's patches, the prompt's things with what the
Checker saw of them, and its relations with the Checker's verdicts see each
other; the words of the instruction see them and the words before. Only words
that go on to one of the instructions that the prompt allows have a
probability. RL-RIG's Actor is a vision-language model; this one is ours.
"""

import dataclasses
import json
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spatialrl.models.reward_model import to_patches
from spatialrl.models.text_encoder import TransformerBlock
from spatialrl.scenes import graph as graphs
from spatialrl.scenes import instructions

_START = instructions.PAD  # what the first word follows
_COLOUR = instructions.WORDS.index(next(iter(graphs.COLOURS)))
_SHAPE = instructions.WORDS.index(graphs.SHAPES[0])
_NEVER = -1e9  # logit of a word that may not be said; infinity has no gradient


@dataclasses.dataclass(frozen=True)
class ActorConfig:
  """Sizes of the Actor.

  Attributes:
    size: pixels a side of the images.
    patch: pixels a side of one image token.
    width: channels of every token.
    depth: transformer blocks.
    heads: attention heads; must divide `width`.
  """

  size: int = 32
  patch: int = 8
  width: int = 96
  depth: int = 2
  heads: int = 6

  def to_json(self):
    """The sizes as a JSON string, as stored beside the weights."""
    return json.dumps(dataclasses.asdict(self), sort_keys=True)

  @classmethod
  def from_json(cls, text):
    return cls(**json.loads(text))


class Context(NamedTuple):
  """What the Actor knows of B images.

  Attributes:
    images: f32[B, S, S, 3] in [-1, 1].
    things: i32[B, 2, 2], colour and shape of the prompt's two things.
    sight: f32[B, 2, 5], how surely the Checker sees them, and their boxes.
    predicates: i32[B, R], the relations of the prompt by `graph.OPPOSITE`, as
      if the first thing were the subject of all; -1 beyond them.
    verdict: f32[B, R], the probability that each holds.
    choices: i32[B, N, T], token ids of every instruction that may be written.
  """

  images: jax.Array
  things: jax.Array
  sight: jax.Array
  predicates: jax.Array
  verdict: jax.Array
  choices: jax.Array


class Actor(nn.Module):
  """Logits of every word of an instruction.

  Call with a Context and words i32[B, T]; returns f32[B, T, V], the logits of
  word k given those before it.
  """

  config: ActorConfig

  @nn.compact
  def __call__(self, context, words):
    c = self.config
    side, length = c.size // c.patch, words.shape[1]

    def table(name, rows):
      return self.param(name, nn.initializers.normal(1.0), (rows, c.width))

    spoken = table("words", len(instructions.WORDS))
    patches = nn.Dense(c.width, name="patches")(to_patches(c, context.images))
    patches = patches + table("positions", side * side)[None]
    colour, shape = jnp.moveaxis(context.things, -1, 0)
    things = spoken[colour + _COLOUR] + spoken[shape + _SHAPE]
    # As large as the embeddings, or places are learned late.
    things = things + nn.Dense(c.width, name="sight")(10 * context.sight - 5)
    things = things + table("order", 2)[None]
    stated = table("predicates", len(graphs.OPPOSITE))[context.predicates]
    verdict = (2 * context.verdict - 1)[..., None]
    stated = stated + verdict * table("holds", 1)[None]
    said = jnp.pad(words[:, :-1], ((0, 0), (1, 0)), constant_values=_START)
    said = spoken[said] + table("steps", instructions.LENGTH)[None, :length]
    x = jnp.concatenate([patches, things, stated, said], axis=1)
    seen = _mask(context.predicates >= 0, side * side + 2, length)
    for i in range(c.depth):
      x = TransformerBlock(c.width, c.heads, name=f"block_{i}")(x, seen)
    x = nn.LayerNorm(epsilon=1e-6, name="norm")(x[:, -length:])
    logits = nn.Dense(len(instructions.WORDS), name="out")(x)
    return jnp.where(allowed(context.choices, words), logits, _NEVER)


def init(config, key):
  """Random weights."""
  shape = (1, config.size, config.size, 3)
  words = jnp.zeros((1, instructions.LENGTH), jnp.int32)
  context = Context(
      images=jnp.zeros(shape), things=jnp.zeros((1, 2, 2), jnp.int32),
      sight=jnp.zeros((1, 2, 5)), predicates=jnp.zeros((1, 1), jnp.int32),
      verdict=jnp.zeros((1, 1)), choices=words[:, None],
  )
  return Actor(config).init(key, context, words)["params"]


def allowed(choices, words):
  """Which word may come next, after those before it.

  Args:
    choices: i32[B, N, T], all that may be said.
    words: i32[B, T].

  Returns:
    bool[B, T, V]; nothing where the words before are of no choice.
  """
  same = jnp.cumprod(choices == words[:, None], axis=-1)
  alive = jnp.pad(same[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=1)
  vocabulary = jnp.arange(len(instructions.WORDS))
  named = choices[..., None] == vocabulary[None, None, None]
  return (named & (alive[..., None] > 0)).any(1)


def log_probs(config, params, context, words):
  """log p of the given words.

  Args:
    config: ActorConfig.
    params: weights.
    context: Context.
    words: i32[B, T].

  Returns:
    (f32[B, T], entropy f32[B, T]).
  """
  logits = Actor(config).apply({"params": params}, context, words)
  table = jax.nn.log_softmax(logits.astype(jnp.float32))
  chosen = jnp.take_along_axis(table, words[..., None], axis=-1)[..., 0]
  return chosen, -jnp.sum(jnp.exp(table) * table, -1)


def sample(config, params, context, key, *, temperature=1.0):
  """Draws an instruction for each row, always one of its choices.

  Args:
    config: ActorConfig.
    params: weights.
    context: Context.
    key: PRNG key.
    temperature: of the draw; 0 takes the likeliest word.

  Returns:
    i32[B, T]; PAD after END.
  """
  def step(words, k):
    logits = Actor(config).apply({"params": params}, context, words)[:, k]
    if temperature:
      drawn = jax.random.categorical(
          jax.random.fold_in(key, k), logits / temperature
      )
    else:
      drawn = jnp.argmax(logits, -1)
    return words.at[:, k].set(drawn), None

  words = jnp.zeros((len(context.images), instructions.LENGTH), jnp.int32)
  return jax.lax.scan(step, words, jnp.arange(instructions.LENGTH))[0]


def sharpened(params, by):
  """Weights whose logits are `by` times as large: a temperature of 1 / by."""
  return params | {"out": jax.tree.map(lambda x: by * x, params["out"])}


def tokens(words):
  """Which tokens were decided: those up to the first END, bool[B, T]."""
  ended = jnp.cumsum(words == instructions.END, axis=1)
  return (ended == 0) | ((ended == 1) & (words == instructions.END))


def _mask(stated, others, length):
  """bool[B, N, N]: the prefix sees itself, a word all before it as well."""
  rows, relations = stated.shape
  count = others + relations + length
  known = jnp.concatenate([jnp.ones((rows, others), bool), stated], 1)
  known = jnp.pad(known, ((0, 0), (0, length)))
  before = jnp.tril(jnp.ones((count, count), bool))
  word = jnp.arange(count) >= others + relations
  return known[:, None] | (before & word[None] & word[:, None])[None]
