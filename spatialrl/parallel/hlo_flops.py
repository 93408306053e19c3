"""FLOPs of single instructions of a compiled program; see `hlo`."""

import math
import re

import numpy as np

from spatialrl.parallel import hlo_text

# Products of queries and keys that a kernel of splash attention makes, by what
# its name holds: logits and sum over values; with gradients of both besides.
_SPLASH = (("splash_mha_fwd", 2), ("splash_mha_dkv", 4), ("splash_mha_dq", 3))


def dot(one, body):
  """Two a product."""
  left = hlo_text.shape_of(body, one.operands[0])
  summed = math.prod(
      left[i] for i in hlo_text.numbers(one, "lhs_contracting_dims")
  )
  return 2 * summed * math.prod(hlo_text.arrays(one.type)[0][1])


def convolution(one, body):
  """Two a product of an input with a kernel value; padding has none.

  Batched matrix products are convolutions to a TPU, whose windows mostly fall
  on padding; hence the places of each window are counted one by one.
  """
  left, right, out = re.search(
      r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes
  ).groups()
  lhs, rhs = (hlo_text.shape_of(body, name) for name in one.operands[:2])
  result = hlo_text.arrays(one.type)[0][1]
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


def kernel(one, body):
  """FLOPs of an attention kernel, None for a kernel of another kind."""
  for name, products in _SPLASH:
    if name in one.name:
      arrays = [
          hlo_text.arrays(body[operand].type)[0] for operand in one.operands
      ]
      # In front of them are tables of blocks, in integers.
      query, key = [
          shape for dtype, shape, _ in arrays
          if len(shape) > 2 and "f" in dtype
      ][:2]
      return 2 * products * math.prod(query) * key[-2]
  return None
