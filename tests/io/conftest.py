"""Fixtures of the files' tests."""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def read_only():
  """A directory in which nothing can be created, also when run by root."""
  with tempfile.TemporaryDirectory() as directory:
    os.chmod(directory, 0o555)
    user = os.geteuid()
    if user == 0:
      os.seteuid(65534)
    try:
      yield directory
    finally:
      os.seteuid(user)


@pytest.fixture
def start():
  """Returns `start(code, *arguments, devices=1)`: Python in its own process."""
  processes = []

  def start(code, *arguments, devices=1):
    process = subprocess.Popen(
      (sys.executable, "-W", "error", "-c", code, *map(str, arguments)),
      cwd=_ROOT,
      env={
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
    return process

  yield start
  for process in processes:
    process.kill()
    process.communicate()
