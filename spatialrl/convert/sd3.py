"""Rename table of SD3 and SD3.5: `SD3Transformer2DModel` of diffusers."""

import jax
import numpy as np

from spatialrl.convert.table import Entry
from spatialrl.models.layers import time_features
from spatialrl.models.mmdit import MMDiT, MMDiTConfig

# A fixed table; ours is computed for the size of the image.
SKIPPED = (r"pos_embed\.pos_embed",)

# Matrices [D, D] and scales of heads in a block: theirs to ours.
QKV = {f"attn.to_{part}": part for part in "qkv"}
QK_NORM = {f"attn.norm_{part}": f"{part}_norm" for part in "qk"}
_IMAGE = {theirs: f"image_{ours}" for theirs, ours in QKV.items()}
_IMAGE["attn.to_out.0"] = "image_out"
_TEXT = {f"attn.add_{part}_proj": f"text_{part}" for part in "qkv"}
_TEXT_OUT = {"attn.to_add_out": "text_out"}
_IMAGE_NORM = {theirs: f"image_{ours}" for theirs, ours in QK_NORM.items()}
_TEXT_NORM = {f"attn.norm_added_{part}": f"text_{part}_norm" for part in "qk"}


def _second(names):
  """The same names for the attention of the image alone."""
  return {
      theirs.replace("attn", "attn2"): ours.replace("image", "image2")
      for theirs, ours in names.items()
  }


def read_config(fields):
  """The sizes in a folder's config.json, as an MMDiTConfig.

  Raises:
    ValueError: for a choice that no published model makes and ours cannot.
  """
  width = fields["num_attention_heads"] * fields["attention_head_dim"]
  dual = fields.get("dual_attention_layers", ())
  norm = fields.get("qk_norm")
  check(fields, "qk_norm", (None, "rms_norm"))
  check(fields, "out_channels", (None, fields["in_channels"]))
  check(fields, "caption_projection_dim", (width,))
  check(fields, "dual_attention_layers", (None, list(range(len(dual)))))
  return MMDiTConfig(
      width=width,
      depth=fields["num_layers"],
      heads=fields["num_attention_heads"],
      channels=fields["in_channels"],
      patch=fields["patch_size"],
      dual_layers=len(dual),
      qk_norm=norm is not None,
      position_table=fields["pos_embed_max_size"],
      position_base=fields["sample_size"] // fields["patch_size"],
      text_width=fields["joint_attention_dim"],
      pooled_width=fields["pooled_projection_dim"],
  )


def table(sizes):
  """Every weight of a folder of these sizes."""
  c, width = sizes, sizes.width
  patch = (width, c.channels, c.patch, c.patch)
  entries = [
      Entry("pos_embed.proj.weight", patch, "patch_embed/kernel", "patch"),
      Entry("pos_embed.proj.bias", (width,), "patch_embed/bias"),
      *ends(c, c.channels * c.patch**2),
  ]
  places = [("dual_blocks", i) for i in range(c.dual_layers)]
  places += [("blocks", i) for i in range(c.depth - 1 - c.dual_layers)]
  places += [("last_block", None)]
  for i, (path, layer) in enumerate(places):
    name = f"transformer_blocks.{i}"
    dual, last = path == "dual_blocks", path == "last_block"
    entries += two_streams(c, name, path, layer, c.qk_norm, text_ends=last)
    if dual:
      norms = _second(_IMAGE_NORM) if c.qk_norm else {}
      entries += inside(c, name, path, layer, _second(_IMAGE), norms)
    for theirs, ours, parts in (
        ("norm1", "image_modulation", 9 if dual else 6),
        ("norm1_context", "text_modulation", 2 if last else 6),
    ):
      theirs, ours = f"{name}.{theirs}.linear", f"{path}/{ours}"
      entries += dense(theirs, ours, width, parts * width, layer)
  return tuple(entries)


def outputs(sizes, params, arrays):
  """What the network gives for the inputs of a check file, by its names.

  Args:
    sizes: from `read_config`.
    params: our tree.
    arrays: with hidden_states, timestep, encoder_hidden_states and
      pooled_projections as the network of diffusers takes them.

  Returns:
    Dict of the sample and of what the file may hold of the states between.
  """
  t = arrays["timestep"] / np.float32(1000)
  out, between = jax.jit(MMDiT(sizes).apply, static_argnames="mutable")(
      {"params": params},
      arrays["hidden_states"].transpose(0, 2, 3, 1),
      t,
      arrays["encoder_hidden_states"],
      arrays["pooled_projections"],
      mutable="intermediates",
  )
  between = between["intermediates"]
  states = {
      "sample": out.transpose(0, 3, 1, 2),
      "dbg_patch_embed": between["image"][0],
      "dbg_context": between["text"][0],
      "dbg_time_proj": time_features(t),
      "dbg_temb": between["vector"][0],
  }
  first = 0
  for stack in ("dual_blocks", "blocks"):
    for stream, (values,) in between.get(stack, {}).items():
      for i, value in enumerate(values, first):
        states[f"dbg_block{i}_{stream}"] = value
    first += len(between[stack]["image"][0]) if stack in between else 0
  states[f"dbg_block{first}_image"] = between["last_block"]["image"][0]
  return {name: np.asarray(value) for name, value in states.items()}


def check(fields, name, allowed):
  """Raises ValueError unless a field, None if missing, is allowed."""
  if fields.get(name) not in allowed:
    raise ValueError(
        f"{name} is {fields.get(name)!r}; allowed are"
        f" {' and '.join(map(repr, allowed))}."
    )


def dense(name, path, inputs, outputs, layer=None):
  """Entries of a linear layer with its bias."""
  weight = Entry(
      f"{name}.weight", (outputs, inputs), f"{path}/kernel", "dense", layer
  )
  return weight, Entry(f"{name}.bias", (outputs,), f"{path}/bias", layer=layer)


def mlp(name, path, inputs, width):
  """Entries of one of the embeddings that make the conditioning vector."""
  name = f"time_text_embed.{name}"
  return (
      *dense(f"{name}.linear_1", f"{path}/up", inputs, width),
      *dense(f"{name}.linear_2", f"{path}/down", width, width),
  )


def ends(sizes, patch_channels):
  """Entries of what SD3 and FLUX have before and behind their blocks."""
  width = sizes.width
  return (
      *mlp("timestep_embedder", "time_embed", 256, width),
      *mlp("text_embedder", "pooled_embed", sizes.pooled_width, width),
      *dense("context_embedder", "context_embed", sizes.text_width, width),
      *dense("norm_out.linear", "norm_out", width, 2 * width),
      *dense("proj_out", "proj_out", width, patch_channels),
  )


def two_streams(sizes, name, path, layer, qk_norm, text_ends=False):
  """Entries that a block of two streams has in SD3 and in FLUX."""
  squares = _IMAGE | _TEXT | ({} if text_ends else _TEXT_OUT)
  norms = _IMAGE_NORM | _TEXT_NORM if qk_norm else {}
  entries = [*inside(sizes, name, path, layer, squares, norms)]
  width = sizes.width
  streams = [("ff", "image_ff"), ("ff_context", "text_ff")]
  for theirs, ours in streams[: 1 if text_ends else 2]:
    theirs, ours = f"{name}.{theirs}.net", f"{path}/{ours}"
    entries += dense(f"{theirs}.0.proj", f"{ours}/up", width, 4 * width, layer)
    entries += dense(f"{theirs}.2", f"{ours}/down", 4 * width, width, layer)
  return entries


def inside(sizes, name, path, layer, squares, norms):
  """Entries of a block's [D, D] matrices and of the scales of its heads."""
  width, head = sizes.width, (sizes.width // sizes.heads,)
  for theirs, ours in squares.items():
    yield from dense(f"{name}.{theirs}", f"{path}/{ours}", width, width, layer)
  for theirs, ours in norms.items():
    scale = f"{path}/{ours}/scale"
    yield Entry(f"{name}.{theirs}.weight", head, scale, layer=layer)
