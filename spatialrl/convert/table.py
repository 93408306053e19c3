"""Rename tables: which tensor of a folder becomes which of our parameters.

A model's table is data, one `Entry` a tensor, read in both directions. Every
module `convert/<model>.py` gives one, and with it

  read_config(fields) -> sizes of the network, from the folder's config.json;
  table(sizes)        -> tuple of Entry, every weight of the model;
  SKIPPED             -> patterns of tensors that hold no weights (buffers);
  outputs(sizes, params, arrays) -> what the network gives for the inputs of a
    check file, under the file's own names.

and, where its tensors go by several spellings,

  canonical(name)     -> the spelling that the table has.
"""

import dataclasses

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of a folder and its place in our tree.

  Attributes:
    name: its name in the folder, "transformer_blocks.3.attn.to_q.weight".
    shape: its shape in the folder.
    path: our parameter, parts joined by "/", "blocks/image_q/kernel".
    form: how it is laid out with us, a key of FORMS.
    layer: its index on the leading axis of a scanned stack; None outside one.
    part: (start, stop) on the last axis of the tensor as it is in the folder,
      where one of its matrices is several of ours; None for all of it.
  """

  name: str
  shape: tuple[int, ...]
  path: str
  form: str = "same"
  layer: int | None = None
  part: tuple[int, int] | None = None

  @property
  def read_shape(self):
    """Shape of the part that this entry reads, as it is in the folder."""
    if self.part is None:
      return self.shape
    start, stop = self.part
    return (*self.shape[:-1], stop - start)


def to_ours(entry, tensor):
  """A tensor of `entry.shape` in our layout, without the layer axis."""
  if entry.part is not None:
    tensor = tensor[..., slice(*entry.part)]
  return FORMS[entry.form][0](tensor)


def to_theirs(entry, value):
  """The inverse of `to_ours`: an array of `entry.read_shape`."""
  return FORMS[entry.form][1](value, entry.read_shape)


def nested(flat):
  """{"a/b": x} -> {"a": {"b": x}}."""
  tree = {}
  for path, value in flat.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree


def flat(tree):
  """The inverse of `nested`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
      jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
      for keys, leaf in leaves
  }


def _patch_to_theirs(kernel, shape):
  out, channels, height, width = shape
  kernel = kernel.reshape(height, width, channels, out)
  return kernel.transpose(3, 2, 0, 1)


# Each form: (theirs -> ours, (ours, their shape) -> theirs).
FORMS = {
    "same": (lambda x: x, lambda x, shape: np.reshape(x, shape)),
    # [out, in] -> [in, out]
    "dense": (lambda x: x.T, lambda x, shape: x.T),
    # A convolution: [out, in, h, w] -> [h, w, in, out].
    "conv": (
        lambda x: x.transpose(2, 3, 1, 0),
        lambda x, shape: x.transpose(3, 2, 0, 1),
    ),
    # A convolution over patches as a dense layer: -> [h w in, out].
    "patch": (
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        _patch_to_theirs,
    ),
    # The same where a patch is flattened as it is stored: -> [in ..., out].
    "flat": (
        lambda x: x.reshape(x.shape[0], -1).T,
        lambda x, shape: x.T.reshape(shape),
    ),
}
