"""The same run on every mesh, in one process and in two."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

_HERE = pathlib.Path(__file__).parent
_ROOT = _HERE.parents[1]
MESHES = ("8,1,1", "4,2,1", "2,2,2", "1,8,1")


def start(devices, *arguments, script=_HERE / "_online.py", **variables):
  environment = os.environ | {
    "PYTHONPATH": str(_ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  return subprocess.Popen(
    (sys.executable, str(script), *map(str, arguments)),
    env=environment | variables,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def start_two(devices, *arguments, **kwargs):
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  return [
    start(
      devices, *arguments, JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index), **kwargs,
    )
    for index in range(2)
  ]


def outputs(processes):
  """What each of them printed, once all have ended well."""
  said = [process.communicate(timeout=600) for process in processes]
  for process, (_, err) in zip(processes, said, strict=True):
    assert process.returncode == 0, err[-3000:]
  return [out for out, _ in said]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
  out = tmp_path_factory.mktemp("meshes")
  outputs([start(8, out, "1", *MESHES)])
  return {name: dict(np.load(out / f"{name}.npz")) for name in ("1", *MESHES)}


def check_same(found, wanted):
  for name in ("reward", "grad_norm", "params"):
    error = np.linalg.norm(found[name] - wanted[name])
    assert error <= 1e-5 * np.linalg.norm(wanted[name]), name
  # Near ratio 1 the loss is a sum of advantages that cancel; they are about 1.
  np.testing.assert_allclose(found["loss"], wanted["loss"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_gives_what_one_device_gives(one_process, mesh):
  check_same(one_process[mesh], one_process["1"])


def test_two_processes_give_what_one_device_gives(one_process, tmp_path):
  outputs(start_two(4, tmp_path, "2,2,2"))
  found = dict(np.load(tmp_path / "2,2,2.npz"))
  check_same(found, one_process["1"])


def test_the_runs_compared_are_alive(one_process):
  rewards = one_process["1"]["reward"]
  assert rewards.std() > 0.1 and (one_process["1"]["grad_norm"] > 1e-2).all()


_DIFFERENT = """
import sys
from spatialrl.parallel import distributed
distributed.start()
config = {"seed": 3, "rollout": {"group": int(sys.argv[1])}}
if distributed.jax.process_index():
  config["rollout"]["group"] += 1
try:
  distributed.check_same(config)
except ValueError as error:
  print(error)
"""


def test_processes_with_other_configs_all_say_where(tmp_path):
  script = tmp_path / "different.py"
  script.write_text(_DIFFERENT)
  for out in outputs(start_two(1, 8, script=script)):
    assert out.splitlines()[-1] == (  # Gloo has its say before
      "config.rollout.group is 8 in process 0 and 9 in process 1; start all"
      " processes with the same command."
    )


@pytest.mark.parametrize("script", ["_resume.py", "_gradient.py"])
def test_on_eight_devices_as_on_one(tmp_path, script):
  outputs([start(8, tmp_path, script=_HERE / script)])
