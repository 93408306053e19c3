"""The tfds builders: prepared at 16 pixels, read back, without TensorFlow."""

import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from spatialrl.data import scenes
from spatialrl.scenes import datasets, grammar, render
from spatialrl.scenes import graph as graphs
from spatialrl.scenes import layout as layouts
from spatialrl.scenes.datasets import building, spatial_scenes

NAMES = ("spatial_scenes/size16", "spatial_reward/size16",
         "spatial_reward/size16_many")
LABELS = spatial_scenes.LABELS


def prepared(folder):
  return {name: tfds.data_source(name, data_dir=folder) for name in NAMES}


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory):
  """Keeps the empty folders that tfds forgets out of the system's."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("scratch")))
    patch.setattr(tempfile, "tempdir", None)
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def sources(folder):
  return prepared(folder)


def related(example):
  """Unordered label pairs that any text of an example relates."""
  texts = [value for value in example.values() if isinstance(value, bytes)]
  return {
      frozenset((a, b))
      for text in texts
      for a, _, b in grammar.parse(text.decode()).triples()
  }


def test_the_package_registers_its_builders():
  names = {tfds.builder(name).name for name in NAMES}
  assert names == {datasets.SpatialScenes.name, datasets.SpatialReward.name}
  for builder in (datasets.SpatialScenes, datasets.SpatialReward):
    assert str(builder.VERSION) in builder.RELEASE_NOTES


@pytest.mark.parametrize("name", NAMES)
def test_splits_have_their_examples_as_array_records(name, sources, folder):
  lengths = {split: len(rows) for split, rows in sources[name].items()}
  assert lengths == {"train": 96, "validation": 32, "held_out": 32}
  builder = tfds.builder(name, data_dir=folder)
  assert builder.info.file_format.value == "array_record"


@pytest.mark.parametrize("name", NAMES)
def test_preparing_twice_gives_the_same_bytes(
    name, sources, folder, tmp_path
):
  tfds.data_source(name, data_dir=tmp_path)
  records = sorted(folder.glob(f"{name}/*/*.array_record*"))
  assert len(records) == 3
  for record in records:
    copy = tmp_path / record.relative_to(folder)
    assert copy.read_bytes() == record.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_held_out_relates_only_pairs_that_no_other_split_relates(
    name, sources
):
  pairs = {
      split: set().union(*map(related, rows))
      for split, rows in sources[name].items()
  }
  assert len(pairs["held_out"]) > 20
  assert all(graphs.is_held_out(*pair) for pair in pairs["held_out"])
  assert not pairs["held_out"] & (pairs["train"] | pairs["validation"])


@pytest.mark.parametrize("name", NAMES)
def test_no_image_is_in_two_splits(name, sources):
  images = [
      value.tobytes()
      for rows in sources[name].values()
      for example in rows
      for value in example.values()
      if getattr(value, "shape", None) == (16, 16, 3)
  ]
  assert len(images) >= 160
  assert len(set(images)) == len(images)


def test_scenes_are_rebuilt_from_prompt_and_boxes(sources):
  wrong = 0
  for example in sources["spatial_scenes/size16"]["train"]:
    graph = grammar.parse(example["prompt"].decode())
    objects = example["objects"]
    named = [LABELS[label] for label in objects["label"]]
    assert named == [thing.label for thing in graph.things]
    x1, y1, x2, y2 = np.stack(objects["box"]).T
    np.testing.assert_allclose(x2 - x1, y2 - y1, atol=1e-6)
    layout = layouts.Layout(
        np.stack([x1 + x2, y1 + y2], -1) / 2,
        (x2 - x1) / 2,
        np.arange(len(x1), dtype=np.int32),
    )
    drawn = render.render(graph, layout, 16).astype(int)
    assert abs(drawn - example["image"]).max() <= 1
    wrong += example["caption"] != example["prompt"]
  assert 0.3 < wrong / 96 < 0.7  # the config says 0.5


def test_examples_are_those_of_the_training_jobs(sources):
  images, captions, _ = scenes.captioned_scenes(
      0, 0, 64, size=16, relations=(1, 2, 3), wrong_share=0.5
  )
  stored = {
      (example["caption"].decode(), example["image"].tobytes())
      for example in sources["spatial_scenes/size16"]["train"]
  }
  expected = [i.tobytes() for i in images]
  assert set(zip(captions, expected, strict=True)) <= stored


@pytest.mark.parametrize(
    "name,allowed",
    [("spatial_reward/size16", {1}), ("spatial_reward/size16_many", {2, 3})],
)
def test_pairs_say_how_many_relations_are_contradicted(
    name, allowed, sources
):
  found = set()
  for example in sources[name]["train"]:
    found.add(int(example["contradicted"]))
    assert related({"prompt": example["prompt"]})
    assert example["prompt"] != example["perturbed_prompt"]
    assert (example["perfect"] != example["perturbed"]).any()
    graph = grammar.parse(example["prompt"].decode())
    assert len(graph.relations) >= example["contradicted"]
  assert found == allowed


def test_another_seed_gives_other_examples(tmp_path, sources):
  config = spatial_scenes.ScenesConfig(
      name="other", size=16, seed=1,
      examples={"train": 4, "validation": 1, "held_out": 1},
  )
  rows = tfds.data_source(
      "spatial_scenes", split="train", data_dir=tmp_path,
      builder_kwargs={"config": config},
  )
  known = {e["prompt"] for e in sources["spatial_scenes/size16"]["train"]}
  assert len(rows) == 4
  assert not {example["prompt"] for example in rows} <= known


def test_a_config_has_to_number_every_split():
  builder = datasets.SpatialScenes(
      config=spatial_scenes.ScenesConfig(
          name="partial", size=16, examples={"train": 4}
      )
  )
  with pytest.raises(ValueError, match="validation"):
    building.split_generators(builder)


def test_nothing_imports_tensorflow(tmp_path):
  program = f"""
import sys
import tensorflow_datasets as tfds
import spatialrl.data.tokenizers
import spatialrl.scenes.datasets
for name in {NAMES!r}:
  rows = tfds.data_source(name, split="held_out", data_dir={str(tmp_path)!r})
  assert rows[3]["prompt"]
loaded = {{"tensorflow", "jax", "torch", "transformers"}} & set(sys.modules)
assert not loaded, loaded
"""
  subprocess.run([sys.executable, "-c", program], check=True)
