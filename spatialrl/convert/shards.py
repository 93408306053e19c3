"""Tensors in safetensors files, read where they lie and written one by one.

A file is the length of its header (u64, little endian), the header in JSON,
and the data it describes (github.com/huggingface/safetensors, "Format").
Nothing here knows models.
"""

import dataclasses
import json
import math
import pathlib

import ml_dtypes
import numpy as np

FLOATS = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
STEMS = ("diffusion_pytorch_model", "model")
_INDEX = ".safetensors.index.json"
_SINGLE = ".safetensors"


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies.

  Attributes:
    name: its name in the file.
    file: path of the file.
    code: its dtype as the file spells it, "BF16".
    shape: tuple of ints.
    start: its first byte, counted from the start of the file.
    size: its bytes.
  """

  name: str
  file: pathlib.Path
  code: str
  shape: tuple[int, ...]
  start: int
  size: int

  @property
  def dtype(self):
    """Its numpy dtype, one of `FLOATS`."""
    return FLOATS[self.code]

  def read(self):
    """The tensor as a read-only map of its part of the file.

    Pages count as memory once they are touched and until the map is freed, so
    a caller holds one of these at a time.
    """
    return self._map(self.dtype, self.shape)

  def raw(self):
    """Its bytes, whatever their dtype, mapped like `read`."""
    return self._map(np.dtype(np.uint8), (self.size,))

  def _map(self, dtype, shape):
    if not self.size:
      return np.zeros(shape, dtype)
    return np.memmap(self.file, dtype, "r", self.start, shape)


def read_header(file):
  """What is in one file, without its data.

  Returns:
    (dict of name -> Tensor, dict of the file's metadata, str -> str).

  Raises:
    ValueError: if the file is cut short or is no safetensors file.
  """
  file = pathlib.Path(file)
  size = file.stat().st_size
  with file.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
      raise ValueError(
        f"{file} is cut short or no safetensors file: it has {size} bytes,"
        " fewer than its header; download it again."
      )
    try:
      header = json.loads(stream.read(length))
    except ValueError as error:
      raise ValueError(
        f"{file} is no safetensors file: its header is not JSON."
      ) from error
  metadata = header.pop("__metadata__", {})
  tensors, end = {}, 8 + length
  for name, field in header.items():
    start, stop = (8 + length + offset for offset in field["data_offsets"])
    tensor = Tensor(
      name, file, field["dtype"], tuple(field["shape"]), start, stop - start
    )
    dtype = FLOATS.get(tensor.code)
    if dtype and math.prod(tensor.shape) * dtype.itemsize != tensor.size:
      raise ValueError(
        f"{file} is damaged: tensor {name!r} has {tensor.size} bytes, not those"
        f" of {tensor.code}{list(tensor.shape)}."
      )
    tensors[name], end = tensor, max(end, stop)
  if size != end:
    kind = "cut short" if size < end else "damaged"
    raise ValueError(
      f"{file} is {kind}: it has {size} bytes and its header describes {end};"
      " download it again."
    )
  return tensors, metadata


def open_tensors(folder):
  """All tensors of a folder, in one file or in shards with an index.

  Returns:
    dict of name -> Tensor.

  Raises:
    ValueError: naming the file that is missing, cut short or not what the
      index says.
  """
  folder = pathlib.Path(folder)
  found = [
    folder / f"{stem}{suffix}"
    for stem in STEMS
    for suffix in (_SINGLE, _INDEX)
    if (folder / f"{stem}{suffix}").exists()
  ]
  if len(found) != 1:
    names = [file.name for file in found] or "none of them"
    raise ValueError(
      f"{folder} must hold the weights once, as one of"
      f" {[stem + suffix for stem in STEMS for suffix in (_SINGLE, _INDEX)]};"
      f" it holds {names}."
    )
  (file,) = found
  if not file.name.endswith(_INDEX):
    return read_header(file)[0]
  return _open_shards(file)


def _open_shards(index):
  try:
    places = json.loads(index.read_text())["weight_map"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{index} cannot be read: it must be JSON with a 'weight_map'."
    ) from error
  tensors = {}
  for name in sorted(set(places.values())):
    shard = index.parent / name
    if not shard.exists():
      raise ValueError(f"shard {shard} is missing; {index.name} lists it.")
    tensors |= read_header(shard)[0]
  for name, shard in places.items():
    if name not in tensors or tensors[name].file.name != shard:
      raise ValueError(
        f"tensor {name!r} is missing from {index.parent / shard}, where"
        f" {index.name} places it."
      )
  return tensors


def write_tensors(folder, tensors, change, *, stem, limit):
  """Writes tensors again, one in memory at a time.

  Args:
    folder: existing directory for the files.
    tensors: sequence of Tensor, in the order they shall have.
    change: function from a Tensor to the array of its bytes in the new file,
      of the same dtype and shape.
    stem: start of the file names, one of `STEMS`.
    limit: bytes of tensors in a file, at most, unless one alone has more.
  """
  shards = [[]]
  for tensor in tensors:
    if shards[-1] and sum(t.size for t in shards[-1]) + tensor.size > limit:
      shards.append([])
    shards[-1].append(tensor)
  count, places = len(shards), {}
  for i, shard in enumerate(shards, 1):
    name = f"{stem}-{i:05}-of-{count:05}{_SINGLE}"
    name = name if count > 1 else stem + _SINGLE
    _write_file(folder / name, shard, change)
    places |= {tensor.name: name for tensor in shard}
  if count > 1:
    total = sum(tensor.size for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / (stem + _INDEX)).write_text(json.dumps(index, indent=2) + "\n")


def _write_file(file, tensors, change):
  header, offset = {"__metadata__": {"format": "pt"}}, 0
  for tensor in tensors:
    header[tensor.name] = {
      "dtype": tensor.code,
      "shape": tensor.shape,
      "data_offsets": (offset, offset := offset + tensor.size),
    }
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # The format aligns the data to 8 bytes.
  with file.open("wb") as stream:
    stream.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
      data = np.ascontiguousarray(change(tensor)).reshape(-1).view(np.uint8)
      if data.size != tensor.size:
        raise ValueError(
          f"tensor {tensor.name!r} has {data.size} bytes instead of"
          f" {tensor.size} after the change."
        )
      stream.write(data)
