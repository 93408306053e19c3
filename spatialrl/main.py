"""Runs one job: python -m spatialrl.main --config FILE[:ARG] --workdir DIR."""

import importlib
import os
import signal
import sys
import traceback

import jax
from absl import app, flags, logging

from spatialrl.command import CONFIG, parse
from spatialrl.io.workdir import check_local, resolve
from spatialrl.parallel import distributed
from spatialrl.parallel.mesh import make_mesh
from spatialrl.platform import prepare_process
from spatialrl.train.run import (
  EXIT_DONE,
  EXIT_FAILED,
  EXIT_STOPPED,
  Stopped,
  stop_at_once,
)

JOBS = (
    "autoencoder", "pretrain", "reward", "heads", "online", "reflect", "eval",
    "sample",
)

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; started again, it goes on there."
)
flags.mark_flag_as_required("workdir")
flags.declare_key_flag("config")  # so that --help lists it


def main(argv):
  """Picks the job that `config.job` names."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  config = CONFIG.value
  workdir = _WORKDIR.value
  try:
    if config.job not in JOBS:
      raise ValueError(f"job is {config.job!r}; allowed are {JOBS}.")
    check_local(workdir)
    distributed.start()
    if jax.process_count() == 1:
      signal.signal(signal.SIGTERM, stop_at_once)
    distributed.check_same(resolve(config))
    job = importlib.import_module(f"spatialrl.train.{config.job}")
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
      job.run(config, workdir, mesh)
  except Stopped as stop:
    print(f"stopped: {stop}", file=sys.stderr)
    return EXIT_STOPPED
  except (ValueError, OSError) as error:
    logging.debug("the error's origin", exc_info=True)
    print(f"error: {error}", file=sys.stderr)
    _leave_others()
    return EXIT_FAILED
  except Exception:  # whatever it was, the others must not wait; raised again
    if jax.distributed.is_initialized():
      traceback.print_exc()
    _leave_others()
    raise
  return EXIT_DONE


def _leave_others():
  """Ends this process, which failed, at once if it is one of several.

  At its exit JAX would wait for all of them, for up to 300 seconds, while they
  wait for this one.
  """
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


def cli():
  """Entry point: sets up the process, then parses flags."""
  prepare_process()
  logging.set_verbosity(logging.WARNING)  # Orbax says a page a checkpoint
  app.run(main, flags_parser=parse)


if __name__ == "__main__":
  cli()
