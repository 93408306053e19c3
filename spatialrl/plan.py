"""Whether a run fits a slice, and how long it would take, without the slice.

  python -m spatialrl.plan --config FILE[:ARG] --topology v5e:4x4 \
    [--json FILE] [--show-sharding] [--config.field=value]

Every program of the run is compiled for the slice by the compiler that would
compile it there; docs/plan.md says what the numbers hold.
"""

import json
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from spatialrl.parallel import chips
from spatialrl.main import parse
from spatialrl.train import planning

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, FILE.py or FILE.py:ARG.", lock_config=True
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, f"One of {', '.join(chips.TOPOLOGIES)}."
)
_JSON = flags.DEFINE_string("json", None, "File for the same as JSON.")
_SHARDING = flags.DEFINE_boolean(
    "show-sharding", False, "List where every weight lies, and compile nothing."
)
flags.mark_flags_as_required(["config", "topology"])
