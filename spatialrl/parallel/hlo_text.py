"""The text of a compiled program, taken apart; see `hlo`."""

import dataclasses
import math
import re

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_START = re.compile(r"\s+(ROOT )?%?[\w.\-]+ = ")
_INSTRUCTION = re.compile(
    r"\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?)"
    r" (?P<opcode>[a-z][a-z0-9\-]*)\((?P<rest>.*)",
    re.DOTALL,
)
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](?:\{[^}]*?(S\(\d+\))?\})?")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  argument: str  # what stands between the brackets
  attributes: str  # what follows them
  root: bool


def parse(text):
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
  return Instruction(
      name=match["name"],
      type=match["type"],
      opcode=match["opcode"],
      operands=tuple(re.findall(r"%([\w.\-]+)", rest[: end - 1])),
      argument=rest[: end - 1],
      attributes=rest[end:],
      root=bool(match["root"]),
  )


def root_of(body):
  """The instruction whose value a computation returns."""
  return next(one for one in body.values() if one.root)


def called(one, kind):
  """Name of the computation that an attribute such as "body" names."""
  return re.search(rf"\b{kind}=%?([\w.\-]+)", one.attributes)[1]


def branches(one):
  """Names of a conditional's computations."""
  listed = re.search(r"branch_computations=\{(.*?)\}", one.attributes)
  if listed:
    return re.findall(r"%?([\w.\-]+)", listed[1])
  return [called(one, f"{side}_computation") for side in ("true", "false")]


def arrays(type_):
  """(dtype, shape, whether it is in fast memory) of each array of a type."""
  return [
      (dtype, tuple(int(n) for n in shape.split(",") if n), bool(space))
      for dtype, shape, space in _ARRAY.findall(type_)
  ]


def shape_of(body, name):
  """Shape of the first array of an instruction."""
  return arrays(body[name].type)[0][1]


def bytes_of(type_, fast=True):
  """Bytes of a type; with `fast` False only of what is in main memory."""
  total = 0
  for dtype, shape, held in arrays(type_):
    bits = re.search(r"\d+", dtype)  # pred has none
    size = math.ceil(math.prod(shape) * (int(bits[0]) if bits else 8) / 8)
    total += size if fast or not held else 0
  return total


def index_of(one):
  """Which entry of its tuple a `get-tuple-element` or parameter is."""
  if one is None:
    return None
  if one.opcode == "get-tuple-element":
    return int(re.search(r"index=(\d+)", one.attributes)[1])
  return int(one.argument) if one.opcode == "parameter" else None


def constant(body, one):
  """The number an instruction always has, or None."""
  while one is not None and one.opcode in ("copy", "bitcast", "convert"):
    one = body.get(one.operands[0])
  if one is None or one.opcode != "constant":
    return None
  return int(one.argument) if re.fullmatch(r"-?\d+", one.argument) else None


def numbers(one, field):
  """The ints of an attribute {1,2}; none where it is missing."""
  found = re.search(rf"{field}=\{{([\d,]*)\}}", one.attributes)
  return [int(n) for n in found[1].split(",") if n] if found else []
