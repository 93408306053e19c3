"""What a compiled program costs, read off its text.

XLA's own `cost_analysis` counts the body of a loop once, and a network is a
loop over its layers. Here everything inside a loop counts as often as it runs.
Nothing is compiled here; text in, numbers out.
"""

import collections
import dataclasses
import math
import re

import numpy as np

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
    "collective-permute",
)
# Products of queries and keys that a kernel of splash attention makes, by what
# its name holds: logits and sum over values; with gradients of both besides.
_SPLASH = (("splash_mha_fwd", 2), ("splash_mha_dkv", 4), ("splash_mha_dq", 3))
_KERNEL = 'custom_call_target="tpu_custom_call"'

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_START = re.compile(r"\s+(ROOT )?%?[\w.\-]+ = ")
_INSTRUCTION = re.compile(
    r"\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?)"
    r" (?P<opcode>[a-z][a-z0-9\-]*)\((?P<rest>.*)",
    re.DOTALL,
)
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](?:\{[^}]*?(S\(\d+\))?\})?")
# Instructions that move nothing, or whose cost is that of what they call.
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while",
    "conditional", "call", "iota", "after-all", "partition-id", "copy-done",
    "slice-done", "async-done", "async-update", "opt-barrier",
}
_PARTS = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass
class Cost:
  """What one device does.

  Attributes:
    cycles: the TPU compiler's estimate; without kernels and without waiting on
      the interconnect. 0 from other compilers.
    flops: of matrix products and convolutions, kernels included.
    kernel_flops: those of attention kernels, which `cycles` does not hold.
    bytes: read and written in main memory by operations; what stays in a TPU's
      fast memory is not counted.
    collectives: bytes that a device receives, by (kind, mesh axes), such as
      ("all-gather", "fsdp").
    unknown: calls of kernels whose work is not known, by name.
  """

  cycles: float = 0.0
  flops: float = 0.0
  kernel_flops: float = 0.0
  bytes: float = 0.0
  collectives: collections.Counter = dataclasses.field(
      default_factory=collections.Counter
  )
  unknown: collections.Counter = dataclasses.field(
      default_factory=collections.Counter
  )

  def add(self, other, times=1):
    """Adds another cost `times` over, in place."""
    for field in ("cycles", "flops", "kernel_flops", "bytes"):
      total = getattr(self, field) + times * getattr(other, field)
      setattr(self, field, total)
    for field in ("collectives", "unknown"):
      for key, value in getattr(other, field).items():
        getattr(self, field)[key] += times * value


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  argument: str  # what stands between the brackets
  attributes: str  # what follows them
  root: bool


def cost(text, axes):
  """The cost of a program.

  Of a conditional, the dearer branch counts.

  Args:
    text: of a compiled and scheduled program, `compiled.as_text()`.
    axes: dict from mesh axis to size, in the mesh's order; the program's
      partitions are numbered along it.

  Returns:
    Cost.

  Raises:
    ValueError: for a loop whose number of turns the text does not tell.
  """
  return _Program(text, axes).cost()


class _Program:
  """The computations of a text, and their costs as they become known."""

  def __init__(self, text, axes):
    self._axes = axes
    self._computations, self._entry = _parse(text)
    self._known = {}

  def cost(self):
    return self._cost(self._entry)

  def _cost(self, name):
    """Of a computation that is run as such, not inside a fusion."""
    if name in self._known:
      return self._known[name]
    total, seen = Cost(), set()
    body = self._computations[name]
    for one in body.values():
      cycles = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
      total.cycles += int(cycles[1]) if cycles else 0
      if one.opcode == "while":
        loop = self._cost(_called(one, "body"))
        total.add(loop, self._turns(one, body))
      elif one.opcode == "conditional":
        branches = [self._cost(branch) for branch in _branches(one)]
        total.add(max(branches, key=lambda c: (c.cycles, c.flops, c.bytes)))
      elif one.opcode == "call":
        total.add(self._cost(_called(one, "to_apply")))
      elif one.opcode == "async-start":
        total.add(self._cost(_called(one, "calls")))
      else:
        self._work(total, one, body, seen)
        total.bytes += self._traffic(one, body)
    self._known[name] = total
    return total

  def _work(self, total, one, body, seen):
    """Adds products, kernels and collectives, looking into fusions.

    An asynchronous collective is in the text several times: as its start, its
    end and in what runs meanwhile; `seen` holds those that were counted.
    """
    if one.opcode == "fusion":
      name = _called(one, "calls")
      inside = self._computations[name]
      for part in inside.values():
        if name.startswith("all-reduce-scatter"):
          part = _scattered(part)
        self._work(total, part, inside, seen)
    elif one.opcode == "dot":
      total.flops += _dot_flops(one, body)
    elif one.opcode == "convolution":
      total.flops += _convolution_flops(one, body)
    elif _KERNEL in one.attributes:
      flops = _kernel_flops(one, body)
      total.flops += flops or 0
      total.kernel_flops += flops or 0
      if flops is None:
        total.unknown[one.name.split(".")[0]] += 1
    else:
      kind = one.opcode.removesuffix("-start")
      channel = re.search(r"channel_id=\d+", one.attributes)
      if kind in COLLECTIVES and not (channel and channel[0] in seen):
        seen.add(channel and channel[0])
        group, axes = _group(one, self._axes)
        received = _bytes_received(kind, group) * sum(
            _bytes(body[operand].type) for operand in one.operands
        )
        total.collectives[kind, axes] += received

  def _traffic(self, one, body):
    """Bytes in main memory that an instruction reads and writes."""
    if one.opcode in _FREE or one.opcode.endswith("-done"):
      return 0
    reads = [_bytes(body[name].type, fast=False) for name in one.operands]
    if one.opcode in _PARTS:
      reads = [_bytes(one.type, fast=False)]
    writes = _bytes(one.type, fast=False)
    if one.opcode.endswith("-start"):  # whose type repeats the operands
      writes = max(0, writes - sum(reads))
    if one.opcode == "dynamic-update-slice":
      reads, writes = [], 2 * _bytes(body[one.operands[1]].type)
    elif one.opcode == "fusion":
      inside = self._computations[_called(one, "calls")]
      reads = [
          min(whole, _read(inside, i)) for i, whole in enumerate(reads)
      ]
      writes = min(writes, _written(inside))
    return sum(reads) + writes

  def _turns(self, loop, body):
    """How often a `while` runs: its counter's start, step and bound."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known[1])
    condition = self._computations[_called(loop, "condition")]
    compare = _root(condition)
    while compare.opcode == "fusion":
      condition = self._computations[_called(compare, "calls")]
      compare = _root(condition)
    inside = self._computations[_called(loop, "body")]
    start = body[loop.operands[0]]
    sides = [condition.get(name) for name in compare.operands]
    for counter, bound in (sides, sides[::-1]):
      index = _index(counter)
      bound = _constant(condition, bound)
      if index is None or bound is None:
        continue
      first = _constant(body, body.get(start.operands[index]))
      following = inside[_root(inside).operands[index]]
      steps = [_constant(inside, inside.get(n)) for n in following.operands]
      steps = [step for step in steps if step]
      if first is not None and steps:
        inclusive = "direction=LE" in compare.attributes
        return max(0, -(-(bound + inclusive - first) // steps[0]))
    raise ValueError(
        f"loop {loop.name} does not tell how often it runs; its condition is"
        f" {compare.opcode}{compare.operands}."
    )


def _parse(text):
  """(dict from computation to its instructions by name, name of the entry)."""
  computations, entry, body, lines = {}, None, None, []

  def close():
    if lines:
      one = _instruction("\n".join(lines))
      body[one.name] = one
      lines.clear()

  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      body = computations[head[2]] = {}
      entry = head[2] if head[1] else entry
    elif body is None:
      continue
    elif line == "}":
      close()
      body = None
    else:
      if _START.match(line):
        close()
      lines.append(line)  # attributes of a kernel go over several
  return computations, entry


def _instruction(text):
  match = _INSTRUCTION.match(text)
  rest, depth, end = match["rest"], 1, 0
  while depth:
    depth += {"(": 1, ")": -1}.get(rest[end], 0)
    end += 1
  return _Instruction(
      name=match["name"],
      type=match["type"],
      opcode=match["opcode"],
      operands=tuple(re.findall(r"%([\w.\-]+)", rest[: end - 1])),
      argument=rest[: end - 1],
      attributes=rest[end:],
      root=bool(match["root"]),
  )


def _root(body):
  return next(one for one in body.values() if one.root)


def _called(one, kind):
  return re.search(rf"\b{kind}=%?([\w.\-]+)", one.attributes)[1]


def _branches(one):
  listed = re.search(r"branch_computations=\{(.*?)\}", one.attributes)
  if listed:
    return re.findall(r"%?([\w.\-]+)", listed[1])
  return [_called(one, f"{side}_computation") for side in ("true", "false")]


def _scattered(one):
  """TPU's reduce-scatter is an all-reduce of which a fusion keeps a part."""
  if one.opcode != "all-reduce":
    return one
  return dataclasses.replace(one, opcode="reduce-scatter")


def _arrays(type_):
  """(dtype, shape, whether it is in fast memory) of each array of a type."""
  return [
      (dtype, tuple(int(n) for n in shape.split(",") if n), bool(space))
      for dtype, shape, space in _ARRAY.findall(type_)
  ]


def _shape(body, name):
  return _arrays(body[name].type)[0][1]


def _bytes(type_, fast=True):
  """Bytes of a type; with `fast` False only of what is in main memory."""
  total = 0
  for dtype, shape, held in _arrays(type_):
    bits = re.search(r"\d+", dtype)  # pred has none
    size = math.ceil(math.prod(shape) * (int(bits[0]) if bits else 8) / 8)
    total += size if fast or not held else 0
  return total


def _read(inside, index):
  """Bytes that a fusion reads of a parameter.

  Those of its slices, if it slices it; none, if it only hands it on or is not
  the one that starts the collective that reads it.
  """
  (start,) = (
      one for one in inside.values()
      if one.opcode == "parameter" and one.argument == str(index)
  )
  names, total, whole = {start.name}, 0, _bytes(start.type)
  starts = any(_is_start(one) for one in inside.values())
  for one in inside.values():
    if not names & set(one.operands):
      continue
    if one.opcode in ("bitcast", "get-tuple-element"):
      names.add(one.name)
    elif one.opcode in _PARTS:
      total += _bytes(one.type)
    elif one.opcode == "tuple" or _is_async(one):
      continue
    elif one.opcode in COLLECTIVES and not starts:
      continue
    elif one.opcode != "dynamic-update-slice" or one.operands[0] not in names:
      return whole
  return total


def _written(inside):
  """Bytes that a fusion writes.

  Of an update in place the update only, of what it hands on none, and of a
  collective the result, in the fusion that ends it.
  """
  def of(one):
    while one.opcode == "bitcast":
      one = inside[one.operands[0]]
    if one.opcode == "tuple":
      return sum(of(inside[name]) for name in one.operands)
    if one.opcode == "parameter" or _is_start(one):
      return 0
    if one.opcode == "dynamic-update-slice":
      return _bytes(inside[one.operands[1]].type)
    return _bytes(one.type, fast=False)

  return of(_root(inside))


def _is_async(one):
  return 'custom_call_target="AsyncCollective' in one.attributes


def _is_start(one):
  return 'custom_call_target="AsyncCollectiveStart"' in one.attributes


def _index(one):
  """Which entry of its tuple a `get-tuple-element` or parameter is."""
  if one is None:
    return None
  if one.opcode == "get-tuple-element":
    return int(re.search(r"index=(\d+)", one.attributes)[1])
  return int(one.argument) if one.opcode == "parameter" else None


def _constant(body, one):
  """The number an instruction always has, or None."""
  while one is not None and one.opcode in ("copy", "bitcast", "convert"):
    one = body.get(one.operands[0])
  if one is None or one.opcode != "constant":
    return None
  return int(one.argument) if re.fullmatch(r"-?\d+", one.argument) else None


def _numbers(one, field):
  found = re.search(rf"{field}=\{{([\d,]*)\}}", one.attributes)
  return [int(n) for n in found[1].split(",") if n] if found else []


def _dot_flops(one, body):
  left = _shape(body, one.operands[0])
  summed = math.prod(left[i] for i in _numbers(one, "lhs_contracting_dims"))
  return 2 * summed * math.prod(_arrays(one.type)[0][1])


def _convolution_flops(one, body):
  """Two a product of an input with a kernel value; padding has none.

  Batched matrix products are convolutions to a TPU, whose windows mostly fall
  on padding; hence the places of each window are counted one by one.
  """
  left, right, out = re.search(
      r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes
  ).groups()
  lhs, rhs = (_shape(body, name) for name in one.operands[:2])
  result = _arrays(one.type)[0][1]
  window = dict(
      re.findall(r"(\w+)=([\w\-]+)", _window(one.attributes))
  )
  flops = 2 * rhs[right.index("i")] * result[out.index("f")]
  flops *= lhs[left.index("b")] // _count(one, "batch_group_count")
  for place, axis in enumerate(sorted(set(left) - {"b", "f"})):
    def setting(name, default, place=place):
      values = window.get(name)
      return values.split("x")[place] if values else default

    flops *= _positions(
        lhs[left.index(axis)],
        rhs[right.index(axis)],
        result[out.index(axis)],
        stride=int(setting("stride", 1)),
        before=int(setting("pad", "0_0").split("_")[0]),
        lhs_dilation=int(setting("lhs_dilate", 1)),
        rhs_dilation=int(setting("rhs_dilate", 1)),
    )
  return flops


def _window(attributes):
  found = re.search(r"window=\{(.*?)\}", attributes)
  return found[1] if found else ""


def _count(one, field):
  found = re.search(rf"{field}=(\d+)", one.attributes)
  return int(found[1]) if found else 1


def _positions(
    size, kernel, out, *, stride, before, lhs_dilation, rhs_dilation
):
  """Pairs of an output and a kernel place that meet an input value."""
  at = np.arange(out)[:, None] * stride - before
  at = at + np.arange(kernel)[None] * rhs_dilation
  inside = (at >= 0) & (at <= (size - 1) * lhs_dilation)
  return int(np.sum(inside & (at % lhs_dilation == 0)))


def _kernel_flops(one, body):
  """FLOPs of an attention kernel, None for a kernel of another kind."""
  for name, products in _SPLASH:
    if name in one.name:
      arrays = [_arrays(body[operand].type)[0] for operand in one.operands]
      # In front of them are tables of blocks, in integers.
      query, key = [
          shape for dtype, shape, _ in arrays
          if len(shape) > 2 and "f" in dtype
      ][:2]
      return 2 * products * math.prod(query) * key[-2]
  return None


def _bytes_received(kind, group):
  """Bytes that arrive at each of `group` devices, per byte it has to send."""
  return {
      "all-gather": group - 1,
      "all-reduce": 2 * (group - 1) / group,
      "reduce-scatter": (group - 1) / group,
      "all-to-all": (group - 1) / group,
      "collective-permute": 1,
  }[kind]


def _group(one, axes):
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
