"""A judge that asks a pool: whole batches that fail, meshes and processes."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from spatialrl.parallel.mesh import make_mesh
from spatialrl.records import Signals
from spatialrl.rewards.external import External, PoolDeadError, check_fields
from spatialrl.train import loop as loops
from spatialrl.train.configs import load_config
from spatialrl.train.measures import reward_metrics
from tests.train.test_loop import Linear

_QUICKSTART = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"
_OWNED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from spatialrl.parallel import mesh as meshes
from spatialrl.rewards import external

process, port = int(sys.argv[1]), sys.argv[2]
count = int(sys.argv[3])
if count > 1:
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"localhost:{port}", count, process)
mesh = meshes.make_mesh((2, 2, 2))
values = np.arange(8, dtype=np.float32)[:, None, None, None] * 8 / 127.5 - 1
images = np.broadcast_to(values, (8, 4, 4, 3))
# As a rollout might leave them: not split over rows.
spread = jax.sharding.NamedSharding(
  mesh, jax.sharding.PartitionSpec(None, "tensor")
)
images = jax.make_array_from_callback(
  images.shape, spread, lambda index: images[index]
)
seen = []

def pool(pixels, prompts):
  assert pixels.shape[1:] == (4, 4, 3) and pixels.dtype == np.uint8
  rows = pixels[:, 0, 0, 0] // 8
  assert prompts == [str(row) for row in rows], (rows, prompts)
  seen.extend(rows.tolist())
  scores = np.where(rows % 3 == 1, -np.inf, rows + 0.1).astype(np.float32)
  return scores, "because"

judge = external.External("fake", pool, mesh)
with jax.set_mesh(mesh):
  scalar = judge(images, [str(row) for row in range(8)]).scalar
  assert {s.data.shape for s in scalar.addressable_shards} == {(8,)}
  whole = jax.jit(lambda x: x, out_shardings=meshes.replicated(mesh))(scalar)
print(sorted(seen), np.asarray(whole).tolist())

dead = external.External(
  "fake", lambda i, p: (np.full(len(p), -np.inf), "gone"), mesh, patience=1
)
try:
  dead(images, ["p"] * 8)
except external.PoolDeadError as error:
  print(error)
"""
_SCORES = np.arange(8, dtype=np.float32) + np.float32(0.1)
_SCORES[1::3] = -np.inf


def judge_of(answers, patience):
  """A judge whose pool gives the next of `answers` at every call."""
  answers = iter(answers)

  def pool(images, prompts):
    return np.full(len(prompts), next(answers), np.float32), "it is off"

  return External("remote", pool, make_mesh((-1, 1, 1)), patience=patience)


def test_batches_without_any_score_stop_the_run():
  images, prompts = jnp.zeros((4, 2, 2, 3)), ["p"] * 4
  off = -np.inf
  judge = judge_of([off, 1.0, off, off], patience=2)
  for want in (off, 1.0, off):
    np.testing.assert_array_equal(judge(images, prompts).scalar, [want] * 4)
  with pytest.raises(PoolDeadError) as caught:
    judge(images, prompts)
  assert str(caught.value) == (
    "rewards.remote gave no score in 2 batches in a row; the last reason was:"
    " it is off"
  )
  assert isinstance(caught.value, OSError)  # what main reports in a sentence


def test_failed_scores_are_counted_for_every_judge():
  group, keep = jnp.zeros(4, jnp.int32), jnp.ones(4, bool)
  reward = jnp.array([1.0, -jnp.inf, 2.0, 3.0])
  signals = {
    "used": Signals(scalar=reward),
    "reported": Signals(scalar=jnp.array([-jnp.inf, -jnp.inf, 0.0, 0.0])),
  }
  values = reward_metrics(reward, signals, group, keep)
  assert values["judge_failures"] == 3
  assert values["failed_scores"] == 1


def test_a_run_goes_on_while_images_or_batches_fail():
  config = load_config(_QUICKSTART, "tiny")
  config.aggregate = ConfigDict(
    {"name": "weighted_sum", "weights": {"remote": 1.0}}
  )
  mesh = make_mesh((-1, 1, 1))
  failing, asked = iter([[1, 5], range(8), []]), []

  def pool(images, prompts):
    scores = images.mean((1, 2, 3), dtype=np.float32)
    scores[list(next(failing))] = -np.inf
    asked.append(scores)
    return scores, "it is off"

  judges = {"remote": External("remote", pool, mesh)}
  loop = loops.Loop(config, mesh, Linear(), judges)
  base = Linear().init()
  state = loop.init(base)
  prompts = ["a red circle left of a blue square"] * 4
  prompts += ["a green cross above a white circle"] * 4
  for step, failed in enumerate((2, 8, 0)):
    state, values = loop.iterate(
      base, state, prompts, np.zeros(8, np.int32), step
    )
    assert np.isfinite(list(values.values())).all(), values
    assert values["judge_failures"] == values["failed_scores"] == failed
    scored = asked[step][np.isfinite(asked[step])]
    wanted = scored.mean() if scored.size else 0.0
    np.testing.assert_allclose(values["reward"], wanted, rtol=1e-5)
    kept = 0.0 if failed == 8 else 0.5  # the best and the worst of each group
    assert values["kept_share"] == kept
  assert set(loop.compilations().values()) == {0, 1}


def test_a_setting_that_cannot_work_is_named():
  check_fields("ocr", {"workers": 1}, {"workers": 1})
  for config, value in (({"workers": 0}, "0"), ({}, "None")):
    said = f"rewards.ocr.workers is {value}; it must be at least 1."
    with pytest.raises(ValueError, match=re.escape(said)):
      check_fields("ocr", config, {"workers": 1})


@pytest.mark.parametrize("processes", [1, 2])
def test_every_image_is_scored_once_by_who_holds_it(processes):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  devices = f"--xla_force_host_platform_device_count={8 // processes}"
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
  runs = [
    subprocess.Popen(
      (sys.executable, "-W", "error", "-c", _OWNED, str(n), str(port),
       str(processes)),
      env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for n in range(processes)
  ]
  try:
    said = [run.communicate(timeout=240) for run in runs]
  finally:
    for run in runs:
      run.kill()
  seen, wanted = [], _SCORES.tolist()
  for run, (out, err) in zip(runs, said, strict=True):
    assert run.returncode == 0, err
    *_, first, last = out.splitlines()  # Gloo talks on stdout too
    rows, scores = re.fullmatch(r"(\[.*\]) (\[.*\])", first).groups()
    rows = [int(row) for row in re.findall(r"\d+", rows)]
    assert len(rows) == 8 // processes
    seen += rows
    assert scores == str(wanted)
    assert last.startswith("rewards.fake gave no score in 1 batches in a row")
    assert last.endswith("gone")
  assert sorted(seen) == list(range(8))
