"""Encodes prompt files once: python -m spatialrl.encode FOLDER CACHE FILE...

A job encodes what its cache lacks as it starts; this does so beforehand, on
another machine for instance. Killed and started again, it goes on behind the
last whole shard.
"""

import argparse
import pathlib
import sys

from absl import logging

from spatialrl.convert import folder
from spatialrl.data import encode
from spatialrl.data.prompts import read_prompts
from spatialrl.train import backbone


def main(argv=None):
  """Brings the cache up to date; 0 if all is well, 1 with one sentence if not.
  """
  args = _parser().parse_args(argv)
  try:
    prompts = [p for file in args.files for p in read_prompts(file)]
    root = pathlib.Path(args.folder).expanduser()
    kind = backbone.kind_of(folder.open_model(root / "transformer"))
    # The empty one is that of guidance.
    new = backbone.encode_prompts(root, kind, args, ["", *prompts])
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(f"{args.cache}: {new} prompts encoded, the others were there")
  return 0


def _parser():
  parser = argparse.ArgumentParser(
    prog="python -m spatialrl.encode", description=__doc__.split("\n")[0]
  )
  parser.add_argument("folder", help="diffusers pipeline of SD3 or FLUX")
  parser.add_argument("cache", help="folder, the field text.cache of a run")
  parser.add_argument(
    "files", nargs="+", help="prompts, a line each, or .jsonl with `prompt`"
  )
  parser.add_argument(
    "--t5-tokens", type=int, default=encode.T5_TOKENS,
    help="text.t5_tokens of the run (default: %(default)s)",
  )
  parser.add_argument(
    "--dtype", choices=encode.DTYPES, default="bfloat16",
    help="text.dtype of the run (default: %(default)s)",
  )
  parser.add_argument(
    "--batch", type=int, default=8,
    help="prompts at a time (default: %(default)s)",
  )
  parser.add_argument(
    "--too-long", choices=encode.TOO_LONG, default="cut",
    help="what becomes of prompts that an encoder cannot hold"
    " (default: %(default)s)",
  )
  return parser


def cli():
  """Entry point: sets up the process, then encodes."""
  logging.set_verbosity(logging.WARNING)
  sys.exit(main())


if __name__ == "__main__":
  cli()
