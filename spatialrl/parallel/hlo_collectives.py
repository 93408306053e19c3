"""Collectives of a compiled program: who takes part, what arrives; see `hlo`.
"""

import dataclasses
import math
import re

import numpy as np

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
    "collective-permute",
)


def scattered(one):
  """TPU's reduce-scatter is an all-reduce of which a fusion keeps a part."""
  if one.opcode != "all-reduce":
    return one
  return dataclasses.replace(one, opcode="reduce-scatter")


def received(kind, group):
  """Bytes that arrive at each of `group` devices, per byte it has to send."""
  return {
      "all-gather": group - 1,
      "all-reduce": 2 * (group - 1) / group,
      "reduce-scatter": (group - 1) / group,
      "all-to-all": (group - 1) / group,
      "collective-permute": 1,
  }[kind]


def group_of(one, axes):
  """(devices that take part with the first, names of the axes they span)."""
  sizes = tuple(axes.values())
  if one.opcode.startswith("collective-permute"):
    pairs = re.findall(r"\{(\d+),(\d+)\}", one.attributes)
    group = [(int(a), int(b)) for a, b in pairs]
    count = 2
  else:
    members = _members(one.attributes, math.prod(sizes))
    group, count = [(members[0], other) for other in members], len(members)
  at = np.stack([np.unravel_index(pair, sizes) for pair in group])
  spans = (at[:, :, 0] != at[:, :, 1]).any(0)  # [axes]
  names = [name for name, spanned in zip(axes, spans, strict=True) if spanned]
  return count, ",".join(names)


def _members(attributes, devices):
  """The first replica group, in any of the three ways to write groups."""
  mesh = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes)
  if mesh:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return _along(sizes, mesh[2])
  iota = re.search(
      r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?",
      attributes,
  )
  if iota:
    shape, dims, order = (
        [int(n) for n in part.split(",")] if part else None
        for part in iota.groups()
    )
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose(order).reshape(shape)[0].tolist()
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
  if listed:
    return [int(n) for n in listed[1].split(",")]
  return list(range(devices))


def _along(sizes, names):
  """Devices of a mesh along some of its axes, or parts "axis:(before)size"."""
  ids = np.arange(math.prod(int(n) for n in sizes.values()))
  ids = ids.reshape([int(n) for n in sizes.values()])
  wanted = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", names)
  for axis, name in reversed(list(enumerate(sizes))):
    parts = [part for part in wanted if part[0] == name]
    ids = np.moveaxis(ids, axis, 0)
    kept = []
    for _, before, size in parts:
      size = int(size or len(ids))
      block = len(ids) // (int(before or 1) * size)
      kept += list(range(0, block * size, block))
    ids = np.moveaxis(ids[kept or [0]], 0, axis)
  return ids.ravel().tolist()
