"""CLIP: tensors of transformers' CLIP classes and their places with us."""

import jax
import numpy as np

from spatialrl.convert.table import Entry
from spatialrl.models import clip

SKIPPED = (r"(\w+\.)?embeddings\.position_ids",)

_TOWER = {
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "projection": "projection_dim",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
}
_TEXT = {
    **_TOWER,
    "vocabulary": "vocab_size",
    "max_tokens": "max_position_embeddings",
    "end": "eos_token_id",
}
_VISION = {**_TOWER, "image": "image_size", "patch": "patch_size"}


def read_config(fields):
  """Sizes from a config.json; absent fields are those of ViT-B/32.

  Returns:
    CLIPTextConfig, CLIPVisionConfig or CLIPConfig, as `architectures` says.

  Raises:
    ValueError: for another class of model.
  """
  named = fields.get("architectures") or []
  known = [name for name in named if name in _READERS]
  if not known:
    raise ValueError(
        f"architectures is {named}; allowed is one of {sorted(_READERS)}."
    )
  return _READERS[known[0]](fields)


def canonical(name):
  """A tensor's name as the table has it, whichever version wrote the file.

  From version 5 on transformers saves a CLIPTextModel without the prefix that
  version 4 needs; both read it.
  """
  bare = name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
  return f"text_model.{name}" if bare else name


def table(sizes):
  """Every weight of a tower or of both, as a tuple of Entry."""
  if isinstance(sizes, clip.CLIPTextConfig):
    return tuple(_text_entries(sizes))
  if isinstance(sizes, clip.CLIPVisionConfig):
    return tuple(_vision_entries(sizes))
  return (
      *_text_entries(sizes.text, "text/"),
      *_vision_entries(sizes.vision, "vision/"),
      Entry("logit_scale", (), "logit_scale"),
  )


def outputs(sizes, params, arrays):
  """What the towers give for `input_ids` and `pixel_values` f32[B, 3, S, S].

  Returns:
    dict, under the names of transformers' outputs. Of a text tower:
    `hidden_state_<i>`, `last_hidden_state` and `text_embeds` (`pooler_output`
    without a projection), the last two besides with the suffix `_masked` where
    there is an `attention_mask`. Of an image tower: `image_embeds` and
    `last_hidden_state`. Of both: `text_embeds`, `image_embeds`,
    `logits_per_text`, `logits_per_image`.
  """
  if isinstance(sizes, clip.CLIPTextConfig):
    found = _text_outputs(sizes, params, arrays)
  else:
    pixels = arrays["pixel_values"].transpose(0, 2, 3, 1)
    if isinstance(sizes, clip.CLIPVisionConfig):
      apply = jax.jit(clip.CLIPVision(sizes).apply)
      last, pooled = apply({"params": params}, pixels)
      found = {"last_hidden_state": last, "image_embeds": pooled}
    else:
      apply = jax.jit(clip.CLIP(sizes).apply)
      image, text, scale = apply(
          {"params": params}, pixels, arrays["input_ids"]
      )
      logits = np.exp(scale) * (image @ text.T)
      found = {
          "image_embeds": image,
          "text_embeds": text,
          "logits_per_image": logits,
          "logits_per_text": logits.T,
      }
  return {name: np.asarray(value) for name, value in found.items()}


def _text_outputs(sizes, params, arrays):
  apply = jax.jit(clip.CLIPText(sizes).apply)
  pooled = "text_embeds" if sizes.projection else "pooler_output"
  states = apply({"params": params}, arrays["input_ids"])
  found = {f"hidden_state_{i}": x for i, x in enumerate(states.hidden)}
  found |= {"last_hidden_state": states.last, pooled: states.pooled}
  if "attention_mask" in arrays:
    mask = arrays["attention_mask"] != 0
    states = apply({"params": params}, arrays["input_ids"], mask)
    found["last_hidden_state_masked"] = states.last
    found[f"{pooled}_masked"] = states.pooled
  return found


def _text_entries(c, at=""):
  embeddings = "text_model.embeddings"
  yield Entry(
      f"{embeddings}.token_embedding.weight",
      (c.vocabulary, c.width),
      f"{at}words",
  )
  yield Entry(
      f"{embeddings}.position_embedding.weight",
      (c.max_tokens, c.width),
      f"{at}places",
  )
  yield from _block_entries(c, "text_model.encoder.layers", f"{at}blocks")
  yield from _norm("text_model.final_layer_norm", f"{at}norm", c.width)
  if c.projection:
    yield _kernel("text_projection", f"{at}projection", (c.projection, c.width))


def _vision_entries(c, at=""):
  embeddings = "vision_model.embeddings"
  yield Entry(f"{embeddings}.class_embedding", (c.width,), f"{at}class_token")
  yield Entry(
      f"{embeddings}.patch_embedding.weight",
      (c.width, 3, c.patch, c.patch),
      f"{at}patch_embed/kernel",
      "patch",
  )
  yield Entry(
      f"{embeddings}.position_embedding.weight",
      (1 + (c.image // c.patch) ** 2, c.width),
      f"{at}places",
  )
  # The name is misspelt in every file.
  yield from _norm("vision_model.pre_layrnorm", f"{at}pre_norm", c.width)
  yield from _block_entries(c, "vision_model.encoder.layers", f"{at}blocks")
  yield from _norm("vision_model.post_layernorm", f"{at}norm", c.width)
  yield _kernel("visual_projection", f"{at}projection", (c.projection, c.width))


def _block_entries(c, name, path):
  dense = {
      **{f"self_attn.{x}_proj": (x, c.width, c.width) for x in "qkv"},
      "self_attn.out_proj": ("out", c.width, c.width),
      "mlp.fc1": ("up", c.hidden, c.width),
      "mlp.fc2": ("down", c.width, c.hidden),
  }
  for i in range(c.depth):
    for theirs, (ours, *shape) in dense.items():
      at = f"{name}.{i}.{theirs}"
      yield _kernel(at, f"{path}/{ours}", tuple(shape), i)
      yield Entry(f"{at}.bias", (shape[0],), f"{path}/{ours}/bias", layer=i)
    for part in (1, 2):
      at = f"{name}.{i}.layer_norm{part}"
      yield from _norm(at, f"{path}/norm{part}", c.width, i)


def _kernel(name, path, shape, layer=None):
  return Entry(f"{name}.weight", shape, f"{path}/kernel", "dense", layer)


def _norm(name, path, width, layer=None):
  yield Entry(f"{name}.weight", (width,), f"{path}/scale", layer=layer)
  yield Entry(f"{name}.bias", (width,), f"{path}/bias", layer=layer)


def _text(fields, **changes):
  return clip.CLIPTextConfig(**_read(_TEXT, fields) | changes)


def _vision(fields, **changes):
  return clip.CLIPVisionConfig(**_read(_VISION, fields) | changes)


def _both(fields):
  # Each tower's own field of this name is not what `CLIPModel` goes by.
  shared = fields.get("projection_dim", 512)
  return clip.CLIPConfig(
      text=_text(fields["text_config"], projection=shared),
      vision=_vision(fields["vision_config"], projection=shared),
  )


def _read(names, fields):
  return {
      ours: fields[theirs] for ours, theirs in names.items() if theirs in fields
  }


_READERS = {
    "CLIPModel": _both,
    "CLIPTextModel": lambda fields: _text(fields, projection=0),
    "CLIPTextModelWithProjection": _text,
    "CLIPVisionModelWithProjection": _vision,
}
