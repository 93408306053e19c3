"""The job on random weights: all GRPO phases and the evaluation."""

import json
import pathlib

import jax
import numpy as np
import pytest

from spatialrl.data import tokenizers
from spatialrl.io import assets
from spatialrl.io.metrics import read_metrics
from spatialrl.models import actor as actors
from spatialrl.models import build
from spatialrl.models import checker as checkers
from spatialrl.models import editor as editors
from spatialrl.parallel.mesh import make_mesh
from spatialrl.reflect import scenes
from spatialrl.scenes import grammar, render
from spatialrl.train import reflect
from spatialrl.train.configs import load_config
from spatialrl.train.reflect_eval import CHAINS

CONFIG = pathlib.Path(__file__).parents[2] / "configs/rl_rig.py"


def random_like(init, scale=0.1):
  """Weights drawn by numpy, which compiles nothing."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda s: rng.normal(0, scale, s.shape).astype(np.float32),
      jax.eval_shape(init, jax.random.key(0)),
  )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A workdir in which the supervised phases are done."""
  root = tmp_path_factory.mktemp("rig")
  config = load_config(CONFIG, "tiny")
  words = len(tokenizers.load())
  policy = build.make_policy(config.diffuser.policy, words)
  params = random_like(policy.init)
  editor, weights = editors.from_policy(policy, params, 0.7, jax.random.key(1))
  checker = checkers.CheckerConfig(**config.checker.model.to_dict())
  actor = actors.ActorConfig(**config.actor.model.to_dict())
  sees = random_like(lambda key: checkers.init(checker, key), 0.4)
  # What is not seen has no region, and an edit would change nothing.
  sees["look"]["sight"]["bias"][0] = 2.0
  files = {
      "diffuser/policy": (params, {"policy": policy.to_json()}),
      "editor/editor": (jax.device_get(weights), {"editor": editor.to_json()}),
      "checker/checker": (sees, {"checker": checker.to_json()}),
      "actor/actor": (
          random_like(lambda key: actors.init(actor, key)),
          {"actor": actor.to_json()},
      ),
  }
  for name, (tree, metadata) in files.items():
    path = root / f"{name}.safetensors"
    path.parent.mkdir()
    assets.save(path, tree, metadata, np.float32)
  drawn = scenes.draw(np.random.default_rng(0), 8)
  images = render.render_batch(*zip(*drawn, strict=True), 16)
  prompts = np.array([grammar.prompt(graph) for graph, _ in drawn])
  (root / "drawn").mkdir()
  np.savez(
      root / "drawn/drawn.npz", train_images=images, train_prompts=prompts
  )
  return root


@pytest.fixture(scope="module")
def done(workdir):
  """The workdir after all phases."""
  config = load_config(CONFIG, "tiny")
  config.eval.rounds = 1
  mesh = make_mesh((-1, 1, 1))
  with jax.set_mesh(mesh):
    reflect.run(config, workdir, mesh)
  return workdir


def test_phases_write_their_numbers_and_weights(done):
  rows = read_metrics(done / "actor_grpo")
  assert [row["step"] for row in rows] == [1, 2]
  assert {"reward", "gain", "words", "ratio", "clip_high"} <= rows[0].keys()
  rows = read_metrics(done / "editor_grpo")
  assert [row["step"] for row in rows] == [1, 2]
  assert rows[0]["grad_norm"] > 0
  assert rows[0]["ratio_first_deviation"] < 1e-5
  assert rows[1]["anchor"] > 0
  rows = read_metrics(done / "generator_grpo")
  assert [row["step"] for row in rows] == [1, 2]
  before, _ = assets.load(done / "editor/editor.safetensors")
  after, _ = assets.load(done / "editor_grpo/editor.safetensors")
  np.testing.assert_array_equal(after["text"]["words"], before["text"]["words"])
  moved = jax.tree.map(
      lambda a, b: np.abs(a - b).max(), after["mmdit"], before["mmdit"]
  )
  assert max(jax.tree.leaves(moved)) > 0


def test_a_record_a_system_seed_and_round(done):
  records = json.loads((done / "eval/results.json").read_text())
  fields = {
      "system", "seed", "round", "sg_iou", "entity_iou", "relation_iou",
      "all_relations", "network_calls", "damage",
  }
  assert all(record.keys() == fields for record in records)
  found = {(r["system"], r["round"]) for r in records}
  systems = (
      *CHAINS, "one_shot", "flow_grpo", "best_of_one_shot",
      "best_of_flow_grpo",
  )
  assert found == {(s, k) for s in systems for k in (0, 1)}
  assert len(records) == len(found)
  calls = {r["network_calls"] for r in records if r["round"] == 0}
  assert calls == {2.0}
  page = (done / "eval/report.html").read_text()
  assert "chain_untrained" in page


@pytest.mark.parametrize("field, value, said", [
    ("phases", ("diffuser", "paint"), "phases has 'paint'; allowed are"),
    ("eval.rounds", -1, "eval.rounds is -1; it must be at least 0"),
    ("actor_grpo.group", 1, "actor_grpo.group is 1; it must be at least 2"),
    ("editor_grpo.rollout.window", 4, "rollout.window is 4"),
    ("editor_grpo.credit.name", "map", "credit.name is 'map'"),
    ("checker.rendered", 0.05, "checker.rendered is 0.05; of a batch of 8"),
    ("checker.model.crop", 9, "crop is 9 and look"),
    ("actor_grpo.sharpen", 0.0, "actor_grpo.sharpen is 0.0; it must be above"),
    ("editor.start", 1.5, "editor.start is 1.5; it must be between 0 and 1"),
])
def test_what_cannot_work_is_refused_before_it_starts(
    tmp_path, field, value, said
):
  config = load_config(CONFIG, "tiny")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=said):
    reflect.run(config, tmp_path / "run", None)
  assert not (tmp_path / "run").exists()
