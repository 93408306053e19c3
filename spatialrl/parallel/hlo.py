"""What a compiled program costs, read off its text.

XLA's own `cost_analysis` counts the body of a loop once, and a network is a
loop over its layers. Here everything inside a loop counts as often as it runs.
Nothing is compiled here; text in, numbers out.
"""

import collections
import dataclasses
import re

from spatialrl.parallel import hlo_collectives, hlo_flops, hlo_text

_KERNEL = 'custom_call_target="tpu_custom_call"'

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
    self._computations, self._entry = hlo_text.parse(text)
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
        loop = self._cost(hlo_text.called(one, "body"))
        total.add(loop, self._turns(one, body))
      elif one.opcode == "conditional":
        branches = [self._cost(branch) for branch in hlo_text.branches(one)]
        total.add(max(branches, key=lambda c: (c.cycles, c.flops, c.bytes)))
      elif one.opcode == "call":
        total.add(self._cost(hlo_text.called(one, "to_apply")))
      elif one.opcode == "async-start":
        total.add(self._cost(hlo_text.called(one, "calls")))
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
      name = hlo_text.called(one, "calls")
      inside = self._computations[name]
      for part in inside.values():
        if name.startswith("all-reduce-scatter"):
          part = hlo_collectives.scattered(part)
        self._work(total, part, inside, seen)
    elif one.opcode == "dot":
      total.flops += hlo_flops.dot(one, body)
    elif one.opcode == "convolution":
      total.flops += hlo_flops.convolution(one, body)
    elif _KERNEL in one.attributes:
      flops = hlo_flops.kernel(one, body)
      total.flops += flops or 0
      total.kernel_flops += flops or 0
      if flops is None:
        total.unknown[one.name.split(".")[0]] += 1
    else:
      kind = one.opcode.removesuffix("-start")
      channel = re.search(r"channel_id=\d+", one.attributes)
      counted = channel and channel[0] in seen
      if kind in hlo_collectives.COLLECTIVES and not counted:
        seen.add(channel and channel[0])
        group, axes = hlo_collectives.group_of(one, self._axes)
        received = hlo_collectives.received(kind, group) * sum(
            hlo_text.bytes_of(body[operand].type) for operand in one.operands
        )
        total.collectives[kind, axes] += received

  def _traffic(self, one, body):
    """Bytes in main memory that an instruction reads and writes."""
    if one.opcode in _FREE or one.opcode.endswith("-done"):
      return 0
    reads = [
        hlo_text.bytes_of(body[name].type, fast=False) for name in one.operands
    ]
    if one.opcode in _PARTS:
      reads = [hlo_text.bytes_of(one.type, fast=False)]
    writes = hlo_text.bytes_of(one.type, fast=False)
    if one.opcode.endswith("-start"):  # whose type repeats the operands
      writes = max(0, writes - sum(reads))
    if one.opcode == "dynamic-update-slice":
      reads, writes = [], 2 * hlo_text.bytes_of(body[one.operands[1]].type)
    elif one.opcode == "fusion":
      inside = self._computations[hlo_text.called(one, "calls")]
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
    condition = self._computations[hlo_text.called(loop, "condition")]
    compare = hlo_text.root_of(condition)
    while compare.opcode == "fusion":
      condition = self._computations[hlo_text.called(compare, "calls")]
      compare = hlo_text.root_of(condition)
    inside = self._computations[hlo_text.called(loop, "body")]
    start = body[loop.operands[0]]
    sides = [condition.get(name) for name in compare.operands]
    for counter, bound in (sides, sides[::-1]):
      index = hlo_text.index_of(counter)
      bound = hlo_text.constant(condition, bound)
      if index is None or bound is None:
        continue
      first = hlo_text.constant(body, body.get(start.operands[index]))
      following = inside[hlo_text.root_of(inside).operands[index]]
      steps = [
          hlo_text.constant(inside, inside.get(name))
          for name in following.operands
      ]
      steps = [step for step in steps if step]
      if first is not None and steps:
        inclusive = "direction=LE" in compare.attributes
        return max(0, -(-(bound + inclusive - first) // steps[0]))
    raise ValueError(
        f"loop {loop.name} does not tell how often it runs; its condition is"
        f" {compare.opcode}{compare.operands}."
    )


def _read(inside, index):
  """Bytes that a fusion reads of a parameter.

  Those of its slices, if it slices it; none, if it only hands it on or is not
  the one that starts the collective that reads it.
  """
  (start,) = (
      one for one in inside.values()
      if one.opcode == "parameter" and one.argument == str(index)
  )
  names, total, whole = {start.name}, 0, hlo_text.bytes_of(start.type)
  starts = any(_is_start(one) for one in inside.values())
  for one in inside.values():
    if not names & set(one.operands):
      continue
    if one.opcode in ("bitcast", "get-tuple-element"):
      names.add(one.name)
    elif one.opcode in _PARTS:
      total += hlo_text.bytes_of(one.type)
    elif one.opcode == "tuple" or _is_async(one):
      continue
    elif one.opcode in hlo_collectives.COLLECTIVES and not starts:
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
      return hlo_text.bytes_of(inside[one.operands[1]].type)
    return hlo_text.bytes_of(one.type, fast=False)

  return of(hlo_text.root_of(inside))


def _is_async(one):
  return 'custom_call_target="AsyncCollective' in one.attributes


def _is_start(one):
  return 'custom_call_target="AsyncCollectiveStart"' in one.attributes
