"""Whether a run fits a slice, and how long it would take, without the slice.

  python -m spatialrl.plan --config FILE[:ARG] --topology v5e:4x4 \
    [--json FILE] [--show-sharding] [--config.field=value]

Every program of the run is compiled for the slice, by the compiler that would
compile it there. docs/plan.md says what the numbers hold and what they do not.
"""

import json
import os
import sys
import tempfile
import time

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from spatialrl.main import parse
from spatialrl.parallel import chips, estimate, partition
from spatialrl.parallel import mesh as meshes
from spatialrl.train import knobs, online, programs, tiny

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, FILE.py or FILE.py:ARG.", lock_config=True
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, f"One of {', '.join(chips.TOPOLOGIES)}."
)
_JSON = flags.DEFINE_string("json", None, "File for the numbers as JSON.")
_SHARDING = flags.DEFINE_boolean(
    "show-sharding", False, "List where every weight lies; compile nothing."
)
flags.mark_flags_as_required(["config", "topology"])

_SPARE = 1e9  # bytes of a chip that a plan leaves to what it does not know
_JSON_FIELDS = (
    "hbm_bytes", "flops", "bytes", "collective_bytes", "estimated_seconds",
    "roofline_seconds",
)


def plan(config, place, say=print):
  """Compiles every program of a run for a slice.

  Args:
    config: of an `online` run.
    place: chips.Slice.
    say: called with each line of the report.

  Returns:
    (dict from program to estimate.Estimate, whether all fit). A program that
    the compiler refused for its memory has the bytes that it wanted, as
    temporaries, and zeros.

  Raises:
    ValueError: for a config that could not run, see `online.check`.
  """
  if config.job != "online":
    raise ValueError(f"job is {config.job!r}; planned can be 'online'.")
  found, fits = {}, True
  with tempfile.TemporaryDirectory() as folder:
    config = tiny.prepare(config, folder)
    mesh = mesh_of(config, place)
    with jax.set_mesh(mesh):
      online.check(config, mesh)
      say(f"{place.name}: {_describe(place)}; mesh {dict(mesh.shape)}")
      for name, program in programs.compile_all(config, mesh):
        found[name] = one = estimate.of(program, place, mesh)
        fits &= one.hbm + _SPARE <= place.chip.hbm
        for line in table(name, one, place):
          say(line)
      for line in verdict(config, mesh, place, found):
        say(line)
  return found, fits
