"""Qwen2.5-VL: `Qwen2_5_VLForConditionalGeneration` of transformers.

Tensors are named as in the published folders. transformers 5 may write other
prefixes; `canonical` maps them to the published ones.
"""

import functools

import jax
import numpy as np

from spatialrl.convert.table import Entry
from spatialrl.data import qwen_inputs
from spatialrl.models.qwen_vision import VisionConfig
from spatialrl.models.qwen_vl import QwenVL, QwenVLConfig

SKIPPED = (r".*\.inv_freq",)
_PREFIXES = {"model.visual.": "visual.", "model.language_model.": "model."}


def canonical(name):
  """A tensor's name in the published folders, whatever wrote it."""
  for prefix, published in _PREFIXES.items():
    if name.startswith(prefix):
      return published + name.removeprefix(prefix)
  return name


def read_config(fields):
  """Sizes from config.json, in the flat or in the nested layout.

  Args:
    fields: dict, the content of config.json.

  Returns:
    QwenVLConfig.

  Raises:
    KeyError: for a missing field.
    ValueError: for a value that our network does not have.
  """
  text = fields.get("text_config", fields)
  vision = fields["vision_config"]
  _only(text, "hidden_act", "silu")
  _only(text, "use_sliding_window", False)
  _only(vision, "hidden_act", "silu")
  _only(vision, "in_channels", 3)
  _only(vision, "in_chans", 3)
  if "rope_parameters" in text:
    rope = text["rope_parameters"]
  else:
    rope = text["rope_scaling"] | {"rope_theta": text["rope_theta"]}
  kind = rope.get("rope_type", rope.get("type"))
  if kind not in ("default", "mrope"):
    raise ValueError(
        f"rope_type is {kind!r}; allowed are 'default' and 'mrope'."
    )
  return QwenVLConfig(
      vision=VisionConfig(
          width=vision["hidden_size"],
          hidden=vision["intermediate_size"],
          depth=vision["depth"],
          heads=vision["num_heads"],
          out=vision["out_hidden_size"],
          full_blocks=vision["fullatt_block_indexes"],
          window=vision["window_size"],
          patch=vision["patch_size"],
          merge=vision["spatial_merge_size"],
          frames=vision["temporal_patch_size"],
      ),
      vocabulary=text["vocab_size"],
      width=text["hidden_size"],
      hidden=text["intermediate_size"],
      depth=text["num_hidden_layers"],
      heads=text["num_attention_heads"],
      kv_heads=text["num_key_value_heads"],
      sections=rope["mrope_section"],
      theta=rope["rope_theta"],
      epsilon=text["rms_norm_eps"],
      image_token=fields["image_token_id"],
      tied=any(part.get("tie_word_embeddings") for part in (fields, text)),
  )


def table(sizes):
  """Every weight of a model of these sizes."""
  return (*_vision(sizes.vision), *_language(sizes))


def outputs(sizes, params, arrays):
  """What our network gives for the inputs of a check file.

  Args:
    sizes: QwenVLConfig.
    params: the tree of a QwenVL.
    arrays: "input_ids", "attention_mask", "image_grid_thw", "pixel_values".

  Returns:
    dict: "position_ids", "rope_deltas", "image_embeds", "hidden_state_0" (the
    embeddings) and so on up to the layer before the last, "last_hidden_state"
    and "logits".
  """
  grids = tuple((int(h), int(w)) for _, h, w in arrays["image_grid_thw"])
  ids, mask = np.int32(arrays["input_ids"]), arrays["attention_mask"] > 0
  positions = qwen_inputs.rope_positions(
      ids, mask, grids, image_token=sizes.image_token, merge=sizes.vision.merge
  )
  inputs = qwen_inputs.QwenInputs(
      ids, mask, positions, arrays["pixel_values"], grids
  )
  deltas = positions.max((0, 2)) + 1 - mask.sum(1)
  return {
      "position_ids": positions,
      "rope_deltas": deltas[:, None],
      **jax.device_get(_run(sizes, params, inputs)),
  }


@functools.partial(jax.jit, static_argnums=0)
def _run(sizes, params, inputs):
  logits, captured = QwenVL(sizes).apply(
      {"params": params},
      inputs,
      # What the model's own methods and its stack of layers return.
      capture_intermediates=lambda module, _: module.name in (None, "layers"),
  )
  seen = captured["intermediates"]
  ((layers, _),) = seen["layers"]["__call__"]
  states = [*seen["embed"], *layers[:-1]]
  return {
      "image_embeds": seen["see"][0],
      "last_hidden_state": seen["states"][0],
      "logits": logits,
  } | {f"hidden_state_{i}": x for i, x in enumerate(states)}


def _only(fields, name, value):
  """Refuses a field that is there and has another value."""
  if fields.get(name, value) != value:
    raise ValueError(f"{name} is {fields[name]!r}; allowed is {value!r}.")


def _dense(name, shape, path, *, bias=True, layer=None):
  """A linear layer, shape (out, in)."""
  yield Entry(f"{name}.weight", shape, f"{path}/kernel", "dense", layer)
  if bias:
    yield Entry(f"{name}.bias", shape[:1], f"{path}/bias", layer=layer)


def _norm(name, width, path, layer=None):
  yield Entry(f"{name}.weight", (width,), f"{path}/scale", layer=layer)


def _vision(c):
  yield Entry(
      "visual.patch_embed.proj.weight",
      (c.width, 3, c.frames, c.patch, c.patch),
      "vision/patch_embed/kernel",
      "flat",
  )
  for i in range(c.depth):
    block = f"visual.blocks.{i}"
    for name in ("norm1", "norm2"):
      yield from _norm(f"{block}.{name}", c.width, f"vision/blocks/{name}", i)
    for name, shape, ours in (
        ("attn.qkv", (3 * c.width, c.width), "qkv"),
        ("attn.proj", (c.width, c.width), "out"),
        ("mlp.gate_proj", (c.hidden, c.width), "gate"),
        ("mlp.up_proj", (c.hidden, c.width), "up"),
        ("mlp.down_proj", (c.width, c.hidden), "down"),
    ):
      path = f"vision/blocks/{ours}"
      yield from _dense(f"{block}.{name}", shape, path, layer=i)
  merged = c.merge**2 * c.width
  yield from _norm("visual.merger.ln_q", c.width, "vision/merge_norm")
  yield from _dense(
      "visual.merger.mlp.0", (merged, merged), "vision/merge_up"
  )
  yield from _dense("visual.merger.mlp.2", (c.out, merged), "vision/merge_down")


def _language(c):
  yield Entry("model.embed_tokens.weight", (c.vocabulary, c.width), "words")
  keys = c.kv_heads * c.head_width
  for i in range(c.depth):
    layer = f"model.layers.{i}"
    for name, ours in (
        ("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2")
    ):
      yield from _norm(f"{layer}.{name}", c.width, f"layers/{ours}", i)
    for name, shape, ours in (
        ("self_attn.q_proj", (c.width, c.width), "q"),
        ("self_attn.k_proj", (keys, c.width), "k"),
        ("self_attn.v_proj", (keys, c.width), "v"),
        ("self_attn.o_proj", (c.width, c.width), "out"),
        ("mlp.gate_proj", (c.hidden, c.width), "gate"),
        ("mlp.up_proj", (c.hidden, c.width), "up"),
        ("mlp.down_proj", (c.width, c.hidden), "down"),
    ):
      yield from _dense(
          f"{layer}.{name}", shape, f"layers/{ours}", bias=ours in "qkv",
          layer=i,
      )
  yield from _norm("model.norm", c.width, "norm")
  if not c.tied:
    yield from _dense(
        "lm_head", (c.vocabulary, c.width), "lm_head", bias=False
    )
