"""The fixture of the tests of tpu/."""

import pytest

from tests.tpu._world import World


@pytest.fixture
def world(tmp_path):
  return World(tmp_path)
