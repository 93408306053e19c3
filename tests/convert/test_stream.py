"""Folders as arrays on devices and as checkpoints."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spatialrl.convert import folder, stream
from spatialrl.io import checkpoint, steps
from spatialrl.parallel.mesh import make_mesh

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def ours(tensors):
  """The tree that the toy's table means, written out by hand."""
  def stack(name, change=lambda x: x):
    return np.stack([change(tensors[f"layers.{i}.{name}"]) for i in range(3)])

  return {
    "words": tensors["words.weight"],
    "temperature": tensors["temperature"],
    "head": {"kernel": tensors["head.weight"].T},
    "layers": {
      "up": {
        "kernel": stack("up.weight", np.transpose), "bias": stack("up.bias")
      },
      "left": {"kernel": stack("down.weight", lambda x: x[:, :3].T)},
      "right": {"kernel": stack("down.weight", lambda x: x[:, 3:].T)},
    },
  }


def assert_equal(found, wanted):
  found = jax.tree.map(np.asarray, found)
  wanted = jax.tree.map(np.asarray, wanted)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
    lambda x: (x.shape, x.dtype), wanted
  )
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("files", [1, 3])
def test_load_follows_the_table(write, tensors, files):
  sizes, params = stream.load(write(tensors, files=files))
  assert sizes == {"layers": 3}
  assert_equal(params, ours(tensors))


@pytest.mark.parametrize("stored", [np.float16, BFLOAT16, np.float64])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_dtypes(write, tensors, stored, dtype):
  _, params = stream.load(write(tensors, dtype=stored), dtype=dtype)
  target = np.dtype(dtype or (np.float32 if stored == np.float64 else stored))
  wanted = {k: x.astype(stored).astype(target) for k, x in tensors.items()}
  assert_equal(params, ours(wanted))


def test_layers_of_two_dtypes_take_the_wider(write, tensors):
  name = "layers.1.up.weight"
  half = tensors[name] = tensors[name].astype(np.float16)
  _, params = stream.load(write(tensors))
  kernel = params["layers"]["up"]["kernel"]
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel[1], half.T.astype(np.float32))


def test_a_slice_is_that_of_the_whole(write, tensors):
  whole = folder.open_model(write(tensors))
  index = (slice(1, 3), slice(0, 2), slice(1, None))
  for parameter in stream.parameters(whole):
    everything = parameter.read(whole.tensors)
    assert everything.shape == parameter.shape
    part = index[: everything.ndim]
    np.testing.assert_array_equal(
      parameter.read(whole.tensors, part), everything[part]
    )


def test_placement(write, tensors):
  mesh, asked = make_mesh((1, 1, 1)), {}

  def placement(path, shape):
    asked[path] = shape
    axes = (None, "fsdp") if path == "layers/up/kernel" else ()
    return NamedSharding(mesh, PartitionSpec(*axes))

  _, params = stream.load(write(tensors), placement=placement)
  assert asked["layers/left/kernel"] == (3, 3, 4)
  assert params["layers"]["up"]["kernel"].sharding.spec[1] == "fsdp"
  assert_equal(params, ours(tensors))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_checkpoint_of_a_folder(write, tensors, tmp_path, dtype, monkeypatch):
  monkeypatch.setattr(stream, "_CHUNK", 64)  # so that `up` goes by layers
  path = write(tensors, files=2)
  stream.to_orbax(path, tmp_path / "out", dtype=dtype)
  _, wanted = stream.load(path, dtype=dtype)
  assert_equal(checkpoint.load_params(tmp_path / "out"), wanted)
  assert checkpoint.read_metadata(tmp_path / "out", 0)["class"] == "Toy"
  chunks = {file.name for file in tmp_path.rglob("params.layers.up.kernel/*")}
  assert chunks == {".zarray", "0.0.0", "1.0.0", "2.0.0"}


def test_a_checkpoint_is_restored_onto_devices(write, tensors, tmp_path):
  stream.to_orbax(write(tensors), tmp_path / "out")
  whole = NamedSharding(make_mesh((1, 1, 1)), PartitionSpec())
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
    {"params": ours(tensors)},
  )
  state = checkpoint.restore(tmp_path / "out", 0, like)
  assert_equal(state["params"], ours(tensors))
  assert state["params"]["words"].sharding == whole


def test_a_conversion_that_was_killed(write, tensors, tmp_path, monkeypatch):
  path, out = write(tensors), tmp_path / "out"

  def fail(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(stream, "_write", fail)
    stream.to_orbax(path, out)
  with pytest.raises(steps.CheckpointError, match="no whole checkpoint"):
    checkpoint.load_params(out)
  stream.to_orbax(path, out)
  assert_equal(checkpoint.load_params(out), ours(tensors))


def test_a_checkpoint_is_not_written_over(write, tensors, tmp_path):
  path = write(tensors)
  stream.to_orbax(path, tmp_path / "out")
  with pytest.raises(ValueError, match="has a checkpoint already"):
    stream.to_orbax(path, tmp_path / "out")
