"""Where every weight lies: one ordered list of rules a model family.

A rule is (regular expression of a leaf's path, PartitionSpec). The first rule
whose expression matches the whole path counts. Its spec speaks of the last
dimensions: those in front, such as the layers of a scanned stack, stay whole.
A family's list holds for its base weights, alone or inside a policy, for its
adapters, and for the optimizer's state and the averages, whose paths end like
those of the weights.

`fsdp` splits what is stored and is gathered for use; `tensor` splits the work:
projections into heads and hidden channels by columns, those out of them by
rows, so that one sum a block crosses the axis.
"""

import math
import re
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from spatialrl.parallel import mesh as meshes

_INTO = r"(.*[/_])?(q|k|v|gate|up)/kernel"
_OUT_OF = r"(.*[/_])?(out|down)/kernel"

_COUNTERS = (
    (r"(.*/)?(step|updates|count|key)", P()),
    (r"stats/.+", P()),
)
_VECTORS = ((r".+/(bias|scale)", P()),)
_ADAPTERS = (
    (r".+/a", P("fsdp", None)),
    (r".+/b", P(None, "fsdp")),
)
# An autoencoder is a hundredth of a backbone; every device decodes alone.
_AUTOENCODER = ((r"(.*/)?(encoder|decoder)/.+", P()),)

# Modulations multiply one vector an image: their kernels are split by what they
# put out, and the vectors gathered, for a gathered kernel would cost more.
# Split over `tensor` as well, XLA's partitioner gives gradients that are wrong
# by several percent on a mesh of 2 x 2 x 2 (jax 0.10.2, seen on CPU).
_TRANSFORMER = (
    (r"(.*/)?places", P()),
    (r"(.*[/_])?modulations?/kernel", P(None, "fsdp")),
    (r"(.*/)?norm_out/kernel", P(None, "fsdp")),
    (r"(.*/)?(patch|context)_embed/kernel", P(None, "fsdp")),
    (r"(.*/)?proj_out/kernel", P("fsdp", None)),
    (_INTO, P("fsdp", "tensor")),
    (_OUT_OF, P("tensor", "fsdp")),
)
_EMPTY_PROMPT = ((r"empty/(text|pooled)", P()),)

_DIFFUSION = (
    *_COUNTERS, *_AUTOENCODER, *_EMPTY_PROMPT, *_VECTORS, *_ADAPTERS,
    *_TRANSFORMER,
)

_SCENES = (
    *_COUNTERS,
    (r"judges/.+", P()),  # heads, a hundredth of the backbone
    (r"(.*/)?tokens", P()),
    *_AUTOENCODER,
    *_VECTORS,
    *_ADAPTERS,
    (r"(.*/)?(words|pool)", P("fsdp")),
    (r"(.*/)?(positions|reward_token)", P()),
    (r"(.*/)?patches/kernel", P(None, "fsdp")),
    (r"(.*/)?(head|flaws|quality|relations|things)_(in|out)/kernel", P()),
    *_TRANSFORMER,
)

_QWEN_VL = (
    *_COUNTERS,
    *_VECTORS,
    *_ADAPTERS,
    (r"(.*/)?token", P()),
    (r"(.*/)?head/.+/kernel", P()),
    (r"(.*/)?words", P("fsdp")),
    (r"(.*/)?lm_head/kernel", P("fsdp", None)),
    # 3420 hidden channels and q, k, v in one kernel: nothing for `tensor`.
    (r"(.*/)?vision/blocks/(qkv|gate|up)/kernel", P("fsdp", None)),
    (r"(.*/)?vision/.+/kernel", P(None, "fsdp")),
    (_INTO, P("fsdp", "tensor")),
    (_OUT_OF, P("tensor", "fsdp")),
)

# The embedded policy, its reward model and the heads on it are one family;
# every device has RL-RIG's Checker and Actor whole.
RULES = {
    "scenes": _SCENES,
    "reflect": ((r".+", P()),),
    "sd3": _DIFFUSION,
    "flux": _DIFFUSION,
    "autoencoder": (*_COUNTERS, *_AUTOENCODER),
    "qwen_vl": _QWEN_VL,
}


class Row(NamedTuple):
  """One leaf of `table`; `bytes` are those on one device."""

  path: str
  shape: tuple[int, ...]
  spec: P
  bytes: int


def sharding(mesh, family, path, shape):
  """The NamedSharding of one leaf.

  Args:
    mesh: Mesh or AbstractMesh with the axes of `mesh.AXES`.
    family: a key of RULES.
    path: parts joined by "/", such as "blocks/image_q/kernel".
    shape: of the leaf.

  Raises:
    ValueError: no rule matches, or an axis does not divide its dimension;
      nothing is ever left whole in silence.
  """
  matches = [spec for rule, spec in RULES[family] if re.fullmatch(rule, path)]
  if not matches:
    raise ValueError(
        f"no rule of {family!r} in parallel/partition.py matches {path}, of"
        f" shape {tuple(shape)}; add one."
    )
  spec = matches[0]
  if len(spec) > len(shape):
    raise ValueError(
        f"{path} has shape {tuple(shape)}; its rule {spec} of {family!r} is for"
        f" {len(spec)} dimensions or more."
    )
  placed = [None] * (len(shape) - len(spec))
  for axes in spec:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    # Axes of one device are left out, so that equal placements are equal.
    axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if shape[len(placed)] % parts:
      raise ValueError(
          f"{path} has shape {tuple(shape)}; mesh axes {axes} of size {parts}"
          f" do not divide its dimension {len(placed)}; choose another mesh."
      )
    placed.append(axes[0] if len(axes) == 1 else axes or None)
  while placed and placed[-1] is None:
    placed.pop()
  return NamedSharding(mesh, P(*placed))


def shardings(mesh, family, tree):
  """The tree of NamedShardings of a tree of arrays or ShapeDtypeStructs.

  Raises:
    ValueError: see `sharding`.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: sharding(mesh, family, name(path), leaf.shape), tree
  )


def structs(mesh, family, tree):
  """The tree as ShapeDtypeStructs, each where its rule puts it."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      tree,
      shardings(mesh, family, tree),
  )


def place(mesh, family, tree):
  """The tree as arrays on the mesh, each where its rule puts it."""
  return jax.tree.map(meshes.put, tree, shardings(mesh, family, tree))


def constrain(mesh, family, tree):
  """The same inside of a program: its arrays come out where the rules say."""
  placed = shardings(mesh, family, tree)
  return jax.lax.with_sharding_constraint(tree, placed)


def table(mesh, family, tree):
  """Row (path, shape, spec, bytes on one device) of every leaf, in order."""
  rows = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    placed = sharding(mesh, family, name(path), leaf.shape)
    held = math.prod(placed.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    rows.append(Row(name(path), leaf.shape, placed.spec, held))
  return rows


def name(path):
  """A path of `jax.tree_util` as rules read it: "params/blocks/a"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
