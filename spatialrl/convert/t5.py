"""T5 encoders: tensors of transformers' `T5EncoderModel` and their places."""

import jax
import numpy as np

from spatialrl.convert.table import Entry
from spatialrl.models.t5 import T5Config, T5Encoder

# Older files hold the embedding table a second time.
SKIPPED = (r"encoder\.embed_tokens\.weight",)

_FIELDS = {
    "vocabulary": "vocab_size",
    "width": "d_model",
    "head_width": "d_kv",
    "heads": "num_heads",
    "hidden": "d_ff",
    "depth": "num_layers",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "epsilon": "layer_norm_epsilon",
}
# `feed_forward_proj` of a config -> (activation, gated).
_FEED_FORWARD = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu_new", True),
}


def read_config(fields):
  """T5Config from a config.json; absent fields are those of T5-Small.

  Raises:
    ValueError: for another feed-forward than T5 and its version 1.1 have.
  """
  kind = fields.get("feed_forward_proj", "relu")
  if kind not in _FEED_FORWARD:
    raise ValueError(
        f"feed_forward_proj is {kind!r}; allowed are {sorted(_FEED_FORWARD)}."
    )
  activation, gated = _FEED_FORWARD[kind]
  sizes = {
      ours: fields[theirs]
      for ours, theirs in _FIELDS.items()
      if theirs in fields
  }
  return T5Config(activation=activation, gated=gated, **sizes)


def table(sizes):
  """Every weight of a T5 encoder, as a tuple of Entry."""
  c = sizes
  inner = c.heads * c.head_width
  first = "encoder.block.0.layer.0.SelfAttention"
  entries = [
      Entry("shared.weight", (c.vocabulary, c.width), "words"),
      Entry(
          f"{first}.relative_attention_bias.weight",
          (c.buckets, c.heads),
          "position_bias",
      ),
      Entry("encoder.final_layer_norm.weight", (c.width,), "norm/scale"),
  ]
  ups = {"wi_0": "gate", "wi_1": "up"} if c.gated else {"wi": "up"}
  dense = {
      **{f"0.SelfAttention.{x}": (x, inner, c.width) for x in "qkv"},
      "0.SelfAttention.o": ("out", c.width, inner),
      **{
          f"1.DenseReluDense.{theirs}": (ours, c.hidden, c.width)
          for theirs, ours in ups.items()
      },
      "1.DenseReluDense.wo": ("down", c.width, c.hidden),
  }
  for i in range(c.depth):
    block = f"encoder.block.{i}.layer"
    for name, (path, *shape) in dense.items():
      entries.append(
          Entry(
              f"{block}.{name}.weight",
              tuple(shape),
              f"blocks/{path}/kernel",
              "dense",
              layer=i,
          )
      )
    for part, path in enumerate(("norm1", "norm2")):
      entries.append(
          Entry(
              f"{block}.{part}.layer_norm.weight",
              (c.width,),
              f"blocks/{path}/scale",
              layer=i,
          )
      )
  return tuple(entries)


def outputs(sizes, params, arrays):
  """Token states for `input_ids`, and under `attention_mask` if it is there.

  Returns:
    dict: `last_hidden_state`, `hidden_state_<i>` (0 for the embedded tokens,
    i for the output of block i), and `last_hidden_state_masked`.
  """
  encode = jax.jit(T5Encoder(sizes).apply)
  states = encode({"params": params}, arrays["input_ids"])
  # transformers norms the last of them, which `last_hidden_state` is.
  found = {f"hidden_state_{i}": x for i, x in enumerate(states.hidden[:-1])}
  found["last_hidden_state"] = states.last
  if "attention_mask" in arrays:
    mask = arrays["attention_mask"] != 0
    masked = encode({"params": params}, arrays["input_ids"], mask)
    found["last_hidden_state_masked"] = masked.last
  return {name: np.asarray(value) for name, value in found.items()}
