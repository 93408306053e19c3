"""What the planner says, and that it plans the programs that are run."""

import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spatialrl import plan as plans
from spatialrl.convert import folder, stream
from spatialrl.parallel import chips, estimate, partition
from spatialrl.parallel import mesh as meshes
from spatialrl.rewards import qwen
from spatialrl.train import programs, tiny
from spatialrl.train.configs import load_config

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
GPU = chips.Slice("h100:1", chips.CHIPS["h100"], (1,))


def config_of(name):
  return load_config(CONFIGS / f"{name}_spatialscore_grpo.py", "tiny")


def avals(tree):
  return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype).name), tree)


@pytest.fixture(scope="module")
def mesh():
  return meshes.make_mesh((-1, 1, 1))


@pytest.fixture(scope="module")
def planned(mesh, tmp_path_factory):
  """(config, Shapes) of the tiny FLUX run."""
  config = tiny.prepare(config_of("flux"), tmp_path_factory.mktemp("run"))
  return config, programs.shapes(config, mesh)


def test_shapes_are_those_of_the_weights_that_a_run_reads(planned, mesh):
  config, held = planned
  root = pathlib.Path(config.model.folder)
  for name, kind in (("transformer", "network"), ("vae", "autoencoder")):
    whole = folder.open_model(root / name, *(["vae"] * (name == "vae")))
    real = stream.load_whole(whole, dtype=config.model.dtype)
    assert avals(held.base[kind]) == avals(real), kind
  judge = config.rewards.qwen_score
  backbone, base = qwen.load_base(judge.folder, judge.dtype, mesh)
  _, _, trained = qwen.load(judge.weights, backbone)
  _, weights, _, calls = held.judges["qwen_score"]
  assert avals(weights) == (avals(base), avals(trained))
  assert calls == programs.images_of(config) // judge.batch == 2


def test_memory_is_what_the_run_takes(planned, mesh):
  """The judge, compiled from shapes and for arrays: bytes within 2%."""
  _, held = planned
  score, weights, inputs, _ = held.judges["qwen_score"]
  arrays = jax.tree.map(
    lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding),
    (weights, *inputs),
  )
  with jax.set_mesh(mesh):
    compiled = score.lower(weights, *inputs).compile()
    real = score.lower(*arrays).compile().memory_analysis()
  found = estimate.of(compiled, GPU, mesh, resident=7).hbm_bytes
  handed = sum(x.nbytes for x in jax.tree.leaves(arrays))
  for kind, expected in (
    ("arguments", real.argument_size_in_bytes),
    ("arguments", handed),
    ("temporaries", real.temp_size_in_bytes),
  ):
    assert found[kind] == pytest.approx(expected, rel=0.02), kind
  assert found["resident"] == 7


def test_a_rollout_that_is_there_early_is_held_by_the_others(planned, mesh):
  config = planned[0].copy_and_resolve_references()
  config.behaviour.name = "previous"
  held = programs.shapes(config, mesh)
  _, rollout = next(programs.compile_all(config, mesh))
  out = rollout.compiled.memory_analysis().output_size_in_bytes
  read = sum(
    x.size * x.dtype.itemsize
    for x in jax.tree.leaves((held.base, held.state.old))
  )
  other = held.weight_bytes - read  # moments, averages, the judge
  assert other > 0 and out > 0
  assert rollout.resident == pytest.approx(other + out, rel=1e-3)


@pytest.mark.parametrize("name, size", [
  ("flux", 11_901_408_320), ("sd35", 2_243_171_520)
])
def test_published_sizes_stand_in_for_folders(name, size, mesh):
  config = load_config(CONFIGS / f"{name}_spatialscore_grpo.py")
  config.mesh = (-1, 1, 1)
  held = programs.shapes(config, mesh)
  network = jax.tree.leaves(held.base["network"])
  assert sum(x.size for x in network) == size
  assert {x.dtype for x in network} == {jnp.dtype("bfloat16")}
  assert held.text[0].shape[1:] == held.base["empty"]["text"].shape[1:]
  base, _ = held.judges["qwen_score"][1]
  assert sum(x.size for x in jax.tree.leaves(base)) > 7.5e9


def test_a_folder_that_nobody_knows_is_refused(mesh):
  config = load_config(CONFIGS / "flux_spatialscore_grpo.py")
  config.model.folder = "models/FLUX.9"
  with pytest.raises(ValueError, match="model.folder leads to .*FLUX.1-dev"):
    programs.shapes(config, mesh)


def one(memory, seconds, received):
  return estimate.Estimate(
    hbm_bytes={"arguments": memory - 1e9, "temporaries": 1e9},
    flops=1e12, bytes=1e9,
    collective_bytes={"all-gather": {"fsdp": received}},
    estimated_seconds=seconds, roofline_seconds=seconds / 2,
    interconnect_seconds=received / 45e9, kernel_seconds=0.0, calls=2,
  )


def made(mesh, memory):
  place = chips.Slice("v5e:4x4", chips.CHIPS["v5e"], (4, 4))
  programs_ = {"rollout": one(9e9, 3.0, 45e9), "update": one(memory, 1, 9e10)}
  return plans.Plan(place, mesh, 32, programs_)


def test_the_largest_program_decides_and_the_slower_of_two_counts(mesh):
  fitting = made(mesh, 12e9)
  assert fitting.fits and fitting.spare == chips.CHIPS["v5e"].hbm - 12e9
  assert fitting.seconds == 2 * 3.0 + 2 * 2.0
  assert not made(mesh, 16e9).fits  # 0.9 GB are left


def test_json_has_the_keys_of_the_issue(mesh):
  plan = json.loads(json.dumps(made(mesh, 12e9).to_json()))
  assert set(plan) == {"programs", "chip", "chips", "fits"}
  assert (plan["chip"], plan["chips"], plan["fits"]) == ("v5e", 16, True)
  for program in plan["programs"].values():
    assert set(program) == {
      "hbm_bytes", "flops", "bytes", "collective_bytes",
      "estimated_seconds", "roofline_seconds",
    }


def test_what_does_not_fit_says_what_would_help(mesh):
  config = config_of("flux")
  config.remat = False
  with_folders = made(mesh, 16e9)
  lines = "\n".join(plans.verdict(with_folders, published(config)))
  for words in (
    "does not fit: 0.91 GB to spare, 1.00 GB wanted",
    "half the train.microbatch saves about 0.50 GB in update",
    "remat True", "rollout.window saves", "T5 encoder",
  ):
    assert words in lines


def published(config):
  """The same with folders that are not there and names that are known."""
  known = load_config(CONFIGS / "flux_spatialscore_grpo.py")
  config.tiny, config.model.folder = "", known.model.folder
  config.rewards = known.rewards
  config.lora, config.model.size = known.lora, 512
  return config


def test_without_the_compiler_of_tpus_one_sentence(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(ImportError, match=r'pip install -e "\.\[tpu\]"'):
    chips.find("v5e:4x4")


@pytest.mark.parametrize("message, gigabytes", [
  ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
   " for HLO temporaries (20.50G) exceeds available HBM (15.75G).", 20.5),
  ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.25G of"
   " 15.75G hbm. Exceeded hbm capacity by 1.50G.", 17.25),
  ("INVALID_ARGUMENT: something else", None),
  ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.00M of"
   " 16.00M vmem.", None),
  ("RESOURCE_EXHAUSTED: Attempting to allocate too much.", None),
])
def test_the_compiler_says_how_much_it_wanted(message, gigabytes):
  found = estimate.exhausted(message)
  assert found == (gigabytes and gigabytes * 2**30)


def test_what_the_compiler_refused_does_not_fit(mesh):
  refused = programs.OutOfMemory("update", GPU.chip.hbm / 2)
  plan = plans.Plan(GPU, mesh, 8, {}, refused)
  assert plan.spare > plans.SPARE and not plan.fits
  assert not plan.to_json()["fits"]


def test_a_folder_that_is_missing_is_said_before_compiling(
  monkeypatch, capsys, tmp_path
):
  path = tmp_path / "gone" / "plan.json"
  for name, value in (
    ("CONFIG", None), ("_TOPOLOGY", "v5e:4x4"), ("_JSON", str(path))
  ):
    monkeypatch.setattr(plans, name, types.SimpleNamespace(value=value))
  monkeypatch.setattr(chips, "find", lambda name: pytest.fail("went on"))
  assert plans.main(["plan"]) == 1
  assert f"{path.parent} is no folder" in capsys.readouterr().err


def test_a_compiled_program_of_a_tpu():
  pytest.importorskip("libtpu")
  place = chips.find("v5e:2x2")
  mesh = meshes.make_mesh((1, -1, 1), list(place.devices))

  def struct(shape, *spec):
    placed = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=placed)

  x, w = struct((1024, 2048), "fsdp"), struct((2048, 2048), "fsdp")
  with jax.set_mesh(mesh):
    run = jax.jit(
      lambda x, w: x @ w,
      out_shardings=x.sharding,
      compiler_options=meshes.compiler_options(mesh),
    )
    compiled = run.lower(x, w).compile()
  found = estimate.of(compiled, place, mesh)
  assert found.flops == 2 * 256 * 2048**2
  assert found.hbm_bytes["arguments"] == (256 + 512) * 2048 * 2
  assert found.estimated_seconds > found.roofline_seconds
  received = 3 / 4 * 2048**2 * 2
  assert found.collective_bytes == {"all-gather": {"fsdp": received}}
  assert found.interconnect_seconds == received / (2 * place.chip.link)


def test_rows_stay_where_they_are():
  """`keep_rows` is in the program, as the partition of what it is given."""
  mesh = meshes.make_mesh((-1, 1, 1))
  with jax.set_mesh(mesh):
    text = jax.jit(meshes.keep_rows).lower(jnp.zeros((4, 2))).as_text()
  assert "data" in text and "fsdp" in text
  table = partition.table(mesh, "flux", {"a": {"bias": jnp.zeros(3)}})
  assert table[0].bytes == 12
