"""Rename table of FLUX.1: `FluxTransformer2DModel` of diffusers."""

import jax
import numpy as np

from spatialrl.convert import sd3
from spatialrl.convert.table import Entry
from spatialrl.models import flux
from spatialrl.models.layers import time_features

SKIPPED = ()


def read_config(fields):
  """The sizes in a folder's config.json, as a FluxConfig.

  Raises:
    ValueError: for a choice that no published model makes and ours cannot.
  """
  sd3.check(fields, "patch_size", (1,))
  sd3.check(fields, "out_channels", (None, fields["in_channels"]))
  return flux.FluxConfig(
      width=fields["num_attention_heads"] * fields["attention_head_dim"],
      doubles=fields["num_layers"],
      singles=fields["num_single_layers"],
      heads=fields["num_attention_heads"],
      channels=fields["in_channels"] // 4,
      axes=fields.get("axes_dims_rope", (16, 56, 56)),
      guidance=fields["guidance_embeds"],
      text_width=fields["joint_attention_dim"],
      pooled_width=fields["pooled_projection_dim"],
  )


def table(sizes):
  """Every weight of a folder of these sizes."""
  c, width = sizes, sizes.width
  entries = [
      *sd3.dense("x_embedder", "patch_embed", 4 * c.channels, width),
      *sd3.ends(c, 4 * c.channels),
  ]
  if c.guidance:
    entries += sd3.mlp("guidance_embedder", "guidance_embed", 256, width)
  for i in range(c.doubles):
    name = f"transformer_blocks.{i}"
    entries += sd3.two_streams(c, name, "double_blocks", i, qk_norm=True)
    for theirs, ours in (
        ("norm1", "image_modulations"),
        ("norm1_context", "text_modulations"),
    ):
      theirs = f"{name}.{theirs}.linear"
      entries += sd3.dense(theirs, ours, width, 6 * width, i)
  for i in range(c.singles):
    name, path = f"single_transformer_blocks.{i}", "single_blocks"
    entries += sd3.inside(c, name, path, i, sd3.QKV, sd3.QK_NORM)
    entries += sd3.dense(
        f"{name}.norm.linear", "modulations", width, 3 * width, i
    )
    entries += sd3.dense(
        f"{name}.proj_mlp", f"{path}/up", width, 4 * width, i
    )
    # Their matrix takes attention and hidden channels side by side.
    out, shape = f"{name}.proj_out.weight", (width, 5 * width)
    for ours, part in (("out", (0, width)), ("down", (width, 5 * width))):
      ours = f"{path}/{ours}/kernel"
      entries.append(Entry(out, shape, ours, "dense", i, part))
    entries.append(
        Entry(f"{name}.proj_out.bias", (width,), f"{path}/out/bias", layer=i)
    )
  return tuple(entries)


def outputs(sizes, params, arrays):
  """What the network gives for the inputs of a check file, by its names.

  Args:
    sizes: from `read_config`.
    params: our tree.
    arrays: with hidden_states (packed), timestep, encoder_hidden_states,
      pooled_projections, img_ids and, if it takes one, guidance, as the
      network of diffusers takes them.

  Returns:
    Dict of the sample and of what the file may hold of the states between.
  """
  t, text = arrays["timestep"], arrays["encoder_hidden_states"]
  rows, columns = (int(n) + 1 for n in arrays["img_ids"][:, 1:].max(0))
  length = text.shape[1]
  given = {"guidance": arrays["guidance"]} if sizes.guidance else {}
  out, between = jax.jit(flux.Flux(sizes).apply, static_argnames="mutable")(
      {"params": params},
      flux.unpack(arrays["hidden_states"], rows, columns),
      t,
      text,
      arrays["pooled_projections"],
      mutable="intermediates",
      **given,
  )
  between = between["intermediates"]
  states = {
      "sample": flux.pack(out),
      "dbg_x_embed": between["image"][0],
      "dbg_context": between["text"][0],
      "dbg_time_proj": time_features(t),
      "dbg_temb": between["vector"][0],
  }
  if sizes.guidance:
    states["dbg_guidance_proj"] = time_features(arrays["guidance"])
  # Text comes first with them, behind the image with us.
  turns = flux.rotary(rows, columns, sizes.axes)
  for name, turn in zip(("cos", "sin"), turns, strict=True):
    still = np.full((length, turn.shape[1]), name == "cos", np.float32)
    states[f"dbg_rope_{name}"] = np.concatenate([still, turn])
  for stream, (values,) in between["double_blocks"].items():
    for i, value in enumerate(values):
      states[f"dbg_double{i}_{stream}"] = value
  for i, value in enumerate(between["single_blocks"]["both"][0]):
    states[f"dbg_single{i}_image"] = value[:, :-length]
    states[f"dbg_single{i}_text"] = value[:, -length:]
  return {name: np.asarray(value) for name, value in states.items()}
