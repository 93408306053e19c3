"""Config files as Python sees them, outside of the command line."""

import importlib.util
import pathlib


def load_config(path, arg=""):
  """`get_config(arg)` of a config file, as `--config PATH:ARG` gives it.

  Args:
    path: of the file.
    arg: str for `get_config`.

  Returns:
    ml_collections.ConfigDict.
  """
  path = pathlib.Path(path)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)
