"""Weights files come back as they were, or say in a sentence why not."""

import numpy as np
import pytest

from spatialrl.io import assets


@pytest.fixture
def tree(rng):
  return {
    "text": {"words": rng.normal(size=(5, 4)).astype(np.float32)},
    "mmdit": {
      "blocks": {"q": {"kernel": rng.normal(size=(2, 4, 4)).astype("f4")}},
      "bias": np.arange(3, dtype=np.float32),
    },
  }


@pytest.fixture
def path(tree, tmp_path):
  path = tmp_path / "weights.safetensors"
  assets.save(path, tree, {"policy": "{}", "made": "by a test"})
  return path


def one_sentence(caught, *words):
  message = str(caught.value)
  assert "\n" not in message and message.endswith(".")
  assert all(word in message for word in words), message


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_tree_comes_back_with_its_metadata(tree, tmp_path, dtype):
  path = tmp_path / "weights.safetensors"
  assets.save(path, tree, {"policy": "{}"}, dtype=dtype)
  params, metadata = assets.load(path)
  assert metadata == {"policy": "{}"}
  assert set(params) == {"text", "mmdit"}
  kernel = params["mmdit"]["blocks"]["q"]["kernel"]
  expected = tree["mmdit"]["blocks"]["q"]["kernel"].astype(dtype)
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel, expected)
  np.testing.assert_array_equal(params["mmdit"]["bias"], [0, 1, 2])
  assets.check_shapes(params, tree, path)


def test_half_precision_halves_the_file(tree, tmp_path):
  tree["text"]["words"] = np.ones((100, 100), np.float32)
  sizes = {}
  for dtype in (np.float16, np.float32):
    path = tmp_path / np.dtype(dtype).name
    assets.save(path, tree, {}, dtype=dtype)
    sizes[dtype] = path.stat().st_size
  assert sizes[np.float16] < 0.52 * sizes[np.float32]


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_truncated_file_is_named(path, kept):
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(ValueError) as caught:
    assets.load(path)
  one_sentence(caught, str(path), "truncated")


def test_a_file_of_another_format_is_named(path):
  path.write_text('{"weights": "in json"}' * 10)
  with pytest.raises(ValueError) as caught:
    assets.load(path)
  one_sentence(caught, str(path), "not a safetensors file")


@pytest.mark.parametrize("name", ["gone.safetensors", "folder"])
def test_a_missing_file_is_named_with_the_packaged_ones(
  tmp_path, monkeypatch, name
):
  (tmp_path / "folder").mkdir()
  (tmp_path / "policy.safetensors").touch()
  monkeypatch.setattr(assets, "PACKAGED", tmp_path)
  with pytest.raises(ValueError) as caught:
    assets.load(tmp_path / name)
  one_sentence(caught, name, "do not exist", "policy.safetensors")


def test_a_packaged_file_is_found_by_name_unless_one_is_there(
  path, monkeypatch, tmp_path
):
  monkeypatch.setattr(assets, "PACKAGED", tmp_path)
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  monkeypatch.chdir(elsewhere)
  assert assets.resolve(path.name) == path
  assert assets.load(path.name)[1]["made"] == "by a test"
  assets.save(elsewhere / path.name, {"a": np.zeros(1)}, {"made": "here"})
  assert assets.load(path.name)[1] == {"made": "here"}


def without(tree, *parents):
  *parents, last = parents
  tree = dict(tree)
  node = tree
  for parent in parents:
    node[parent] = dict(node[parent])
    node = node[parent]
  del node[last]
  return tree


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      lambda tree: tree | {"text": {"words": np.zeros((5, 8))}},
      ("text/words", "(5, 4)", "(5, 8)"),
    ),
    (
      lambda tree: without(tree, "mmdit", "blocks", "q", "kernel"),
      ("mmdit/blocks/q/kernel", "(2, 4, 4)", "needs None"),
    ),
    (
      lambda tree: tree | {"pool": np.zeros(7)},
      ("pool", "has shape None", "(7,)"),
    ),
  ],
)
def test_the_first_leaf_of_another_model_is_named(path, tree, change, words):
  params, _ = assets.load(path)
  with pytest.raises(ValueError) as caught:
    assets.check_shapes(params, change(tree), path)
  one_sentence(caught, str(path), "another model", *words)
