"""From a compiled program to memory and time on a slice; arithmetic only."""

import dataclasses
import re

import numpy as np

from spatialrl.parallel import hlo

# Kernels are not in the compiler's estimate. Counting instructions in the inner
# loop of splash attention gave 73% of a v5e's arithmetic at 512 px and 74% at
# 1024 px, forward; all its kernels on all chips are taken to reach that.
_KERNEL_EFFICIENCY = 0.73


@dataclasses.dataclass(frozen=True)
class Estimate:
  """One call of a program, on each device.

  Attributes:
    hbm_bytes: dict of the bytes of "arguments", "temporaries", "output" (what
      does not take the place of an argument), "code", and "resident": what the
      program does not touch and the run holds meanwhile.
    flops: of matrix products, convolutions and attention kernels.
    bytes: read and written in memory.
    collective_bytes: dict from kind to dict from mesh axes to the bytes that a
      device receives.
    estimated_seconds: of computing; by the TPU compiler's estimate, with
      attention kernels added, or for a GPU the slower of arithmetic and memory.
    roofline_seconds: of `flops` at the chip's peak.
    interconnect_seconds: of all collectives one after the other; hidden behind
      computing where it is the smaller of both, at best.
    kernel_seconds: the part of `estimated_seconds` that is attention kernels.
    calls: of an iteration.
    unknown: kernels whose work is not in any of it.
  """

  hbm_bytes: dict
  flops: float
  bytes: float
  collective_bytes: dict
  estimated_seconds: float
  roofline_seconds: float
  interconnect_seconds: float
  kernel_seconds: float
  calls: int
  unknown: tuple = ()

  @property
  def hbm(self):
    """All bytes of a device together."""
    return sum(self.hbm_bytes.values())


def of(compiled, place, mesh, *, calls=1, resident=0):
  """Reads a compiled program.

  Args:
    compiled: what `jax.stages.Lowered.compile` gives.
    place: chips.Slice that it is for.
    mesh: of its devices.
    calls: of an iteration.
    resident: see `Estimate.hbm_bytes`.

  Returns:
    Estimate.
  """
  chip, memory = place.chip, compiled.memory_analysis()
  cost = hlo.cost(compiled.as_text(), dict(mesh.shape))
  kernels = cost.kernel_flops / chip.flops / _KERNEL_EFFICIENCY
  roofline = cost.flops / chip.flops
  if chip.clock:
    seconds = cost.cycles / chip.clock + kernels
  else:
    seconds = max(roofline, cost.bytes / chip.bandwidth)
  received = {}
  for (kind, axes), count in sorted(cost.collectives.items()):
    received.setdefault(kind, {})[axes] = int(count)
  return Estimate(
      hbm_bytes={
          "arguments": memory.argument_size_in_bytes,
          "temporaries": memory.temp_size_in_bytes,
          "output": (
              memory.output_size_in_bytes - memory.alias_size_in_bytes
          ),
          "code": memory.generated_code_size_in_bytes,
          "resident": resident,
      },
      flops=cost.flops,
      bytes=cost.bytes,
      collective_bytes=received,
      estimated_seconds=seconds,
      roofline_seconds=roofline,
      interconnect_seconds=sum(
          count / bandwidth(place, mesh, axes)
          for axes_of_kind in received.values()
          for axes, count in axes_of_kind.items()
          if axes
      ),
      kernel_seconds=kernels,
      calls=calls,
      unknown=tuple(sorted(cost.unknown)),
  )


def bandwidth(place, mesh, axes):
  """Bytes a second between the devices along some axes of the mesh.

  Links that other groups of the same axes use as well are not divided.

  Args:
    place: chips.Slice.
    mesh: of its devices.
    axes: names joined by a comma.
  """
  if place.chip.kind == "gpu":
    return place.links(())
  first = tuple(
      slice(None) if name in axes.split(",") else 0 for name in mesh.axis_names
  )
  coords = np.stack([
      device.coords[: len(place.shape)]
      for device in np.ravel(mesh.devices[first])
  ])
  return place.links(np.flatnonzero((coords != coords[0]).any(0)))


def exhausted(message):
  """Bytes of HBM that a program wanted which the TPU compiler refused.

  Args:
    message: of the error.

  Returns:
    float, or None where the error was about something else: a kernel that
    wants too much of the chip's inner memory, say, is no matter of size.
  """
  if "RESOURCE_EXHAUSTED" not in message or "memory space vmem" in message:
    return None
  found = re.search(r"(?:Used |temporaries \()([\d.]+)([KMG])", message)
  if found is None:
    return None
  return float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]]
