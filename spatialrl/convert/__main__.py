"""Weights in and out: python -m spatialrl.convert COMMAND --help."""

import argparse
import collections
import pathlib
import sys
import zipfile

import jax
import numpy as np
from absl import logging

from spatialrl.convert import adapters, check, folder, lora, stream
from spatialrl.convert.folder import Adapter, Pipeline
from spatialrl.io.checkpoint import load_params
from spatialrl.models.lora import LoRAConfig

_TOLERANCE = 2e-4
_GB = 10**9


def main(argv=None):
  """Runs one command; 0 if all is well, 1 with one sentence if not."""
  args = _parser().parse_args(argv)
  try:
    return args.run(args) or 0
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1


def inspect(args):
  """Says what a folder holds, and checks that it is whole."""
  found = folder.recognise(args.folder)
  if isinstance(found, Pipeline):
    print(f"{found.path}: {found.class_name}, {len(found.parts)} networks")
    print(f"  not weights of ours: {', '.join(found.others) or 'nothing'}")
    for part in found.parts:
      _describe(found.path / part)
  elif isinstance(found, Adapter):
    tensors, settings, _ = lora.open_adapter(args.folder)
    alpha = settings.get("lora_alpha", "not given, so the rank")
    ranks = {t.shape[0] for n, t in tensors.items() if ".lora_A." in n}
    print(f"{found.path}: LoRA in the layout of {found.layout}")
    print(f"  rank {', '.join(map(str, sorted(ranks)))}, alpha {alpha}")
    print(f"  {_count(tensors.values())}")
  else:
    _describe(found.path)


def import_(args):
  """Converts a model folder, or each network of a pipeline, to Orbax."""
  for source, out in _networks(args.folder, args.out):
    stream.to_orbax(source, out, dtype=args.dtype)
    print(f"{out}: load with spatialrl.io.checkpoint.load_params({str(out)!r})")


def merge(args):
  """Adds a LoRA to its base."""
  limit = int(args.shard_gb * _GB)
  adapters.merge_folder(args.base, args.lora, args.out, limit=limit)
  print(f"{args.out}: the merged model, in the layout of {args.base}")


def export_lora(args):
  """Writes the adapters that a run trained as a LoRA folder."""
  trained = pathlib.Path(args.trained)
  config = folder.read_json(trained / "config.json")["config"].get("lora")
  if not config or not config["rank"]:
    raise ValueError(f"{trained}/config.json has lora.rank 0; it trained none.")
  config = LoRAConfig(config["rank"], config["alpha"])
  whole = folder.open_model(args.base)
  tree = load_params(trained, args.step, field=args.field)
  pairs = adapters.from_tree(config, tree, whole)
  lora.write(args.out, args.format, pairs, whole)
  print(f"{args.out}: LoRA of {len(pairs)} layers for {args.format}")


def run_check(args):
  """Compares what a folder computes with the arrays of a check file."""
  found = folder.recognise(args.folder)
  if args.io is None:
    for source, _ in _networks(args.folder, ""):
      _check_names(source, args)
    return 0
  wanted = _read_arrays(args.io)
  arrays = wanted
  if isinstance(found, Adapter):
    base = pathlib.Path(_base(found, args))
    same = base / pathlib.Path(args.io).name
    if same.exists():
      print(f"inputs that {args.io} lacks are taken from {same}")
      arrays = _read_arrays(same) | wanted
    outputs = check.lora_outputs(
      folder.open_model(base), args.folder, arrays
    )
  else:
    outputs = check.model_outputs(folder.open_model(args.folder), arrays)
  return _report(check.compare(outputs, wanted), wanted, args.tolerance)


def _report(differences, wanted, tolerance):
  """Prints a line an output; 1 if one is beyond the tolerance or none is."""
  print(f"{'output':28} {'largest':>10} {'scale':>10} {'ratio':>10}")
  failed = []
  for d in differences:
    beyond = not d.ratio <= tolerance  # nan is beyond, too
    failed += [d.name] * beyond
    numbers = " ".join(f"{x:10.3g}" for x in (d.largest, d.scale, d.ratio))
    print(f"{d.name:28} {numbers}{'  BEYOND' * beyond}")
  others = sorted(wanted.keys() - {d.name for d in differences})
  if others:
    print(f"not compared, inputs or not ours: {', '.join(others)}")
  if not differences:
    print("error: nothing in the file is an output of ours", file=sys.stderr)
    return 1
  within = len(differences) - len(failed)
  print(f"{within} of {len(differences)} within {tolerance:g} of their scale")
  return 1 if failed else 0


def _check_names(source, args):
  found = folder.recognise(source)
  if isinstance(found, Adapter):
    whole = folder.open_model(_base(found, args))
    adapters.to_tree(lora.read(source, whole), whole)
  else:
    stream.load(source)
  print(f"{source}: loads; names, shapes and dtypes are right, numbers were"
        " not compared (give --io)")


def _base(adapter, args):
  """Folder of the base model: as given, or where peft says it is."""
  if args.base:
    return args.base
  named = None
  if (adapter.path / folder.PEFT_CONFIG).exists():
    settings = folder.read_json(adapter.path / folder.PEFT_CONFIG)
    named = settings.get("base_model_name_or_path")
  if not named or not pathlib.Path(named).is_dir():
    raise ValueError(
      f"{adapter.path} is a LoRA whose base is {named!r}, no folder here; give"
      " --base FOLDER."
    )
  return named


def _networks(source, out):
  """(folder, output) of a network, or of each one of a pipeline."""
  found, out = folder.recognise(source), pathlib.Path(out)
  if isinstance(found, Pipeline):
    return [(found.path / part, out / part) for part in found.parts]
  return [(found.path, out)]


def _describe(path):
  whole = folder.open_model(path)
  tensors = whole.tensors.values()
  files = {tensor.file for tensor in tensors}
  print(f"{path}: {whole.model.class_name} ({whole.model.kind})")
  print(f"  {_count(tensors)}, in {len(files)} file(s)")
  print(f"  {whole.sizes}")


def _count(tensors):
  tensors = list(tensors)
  count = sum(int(np.prod(tensor.shape)) for tensor in tensors)
  size = sum(tensor.size for tensor in tensors) / _GB
  codes = collections.Counter(tensor.code for tensor in tensors)
  kinds = ", ".join(f"{n} {code}" for code, n in codes.most_common())
  return f"{count:,} parameters, {size:.2f} GB, tensors: {kinds}"


def _read_arrays(file):
  try:
    # Opened here, for numpy leaves a file open that it cannot read.
    with open(file, "rb") as opened, np.load(opened) as arrays:
      return dict(arrays)
  except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
    raise ValueError(f"{file} is broken or no NPZ file of arrays.") from error


def _parser():
  parser = argparse.ArgumentParser(
    prog="python -m spatialrl.convert", description=__doc__
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")

  def command(name, run, text):
    found = commands.add_parser(name, help=text, description=text)
    found.set_defaults(run=run)
    return found

  p = command(
    "inspect", inspect, "Say what a folder holds and check that it is whole."
  )
  p.add_argument("folder", help="model, LoRA or diffusers pipeline")

  p = command(
    "import", import_, "Convert a model, or all networks of a pipeline, to an"
    " Orbax checkpoint, with no more than a tensor in memory."
  )
  p.add_argument("folder", help="model folder or diffusers pipeline")
  p.add_argument("out", help="directory of the checkpoint")
  p.add_argument(
    "--dtype", choices=("float32", "bfloat16", "float16"),
    help="of all parameters; as they are if not given",
  )

  p = command(
    "merge", merge, "Write a base model with a LoRA added to its weights, in"
    " the base's own layout and dtype."
  )
  p.add_argument("base", help="model folder")
  p.add_argument("lora", help="LoRA folder of peft or diffusers")
  p.add_argument("out", help="new folder")
  p.add_argument(
    "--shard-gb", type=float, default=10.0,
    help="gigabytes a file at most (default: %(default)s)",
  )

  p = command(
    "export-lora", export_lora, "Write the adapters that a run trained as a"
    " LoRA folder."
  )
  p.add_argument("trained", help="workdir of the run")
  p.add_argument("out", help="new folder")
  p.add_argument("--base", required=True, help="folder of the base model")
  p.add_argument("--format", choices=("diffusers", "peft"), required=True)
  p.add_argument(
    "--field", choices=("ema", "params"), default="ema",
    help="the moving average, which evaluations use, or the last weights"
    " (default: %(default)s)",
  )
  p.add_argument("--step", type=int, help="checkpoint; the newest if not given")

  p = command(
    "check", run_check, "Load a folder, run it on the inputs in a file, and"
    " compare with the outputs stored in it under the same names."
  )
  p.add_argument("folder", help="model or LoRA folder")
  p.add_argument(
    "--io", help="NPZ file; without one only names and shapes are checked"
  )
  p.add_argument(
    "--base", help="folder of a LoRA's base, if adapter_config.json names none"
  )
  p.add_argument(
    "--tolerance", type=float, default=_TOLERANCE,
    help="largest difference over the output's scale (default: %(default)s,"
    " which the float32 sinusoids of the time need)",
  )
  return parser


def cli():
  """Entry point: sets up the process, then runs one command."""
  # The numbers of a check are those of float32 on the CPU.
  jax.config.update("jax_platforms", "cpu")
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what it leaves out.
  sys.exit(main())


if __name__ == "__main__":
  cli()
