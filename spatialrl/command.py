"""What the commands have in common: the config and how flags are read."""

import sys

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, FILE.py or FILE.py:ARG.", lock_config=True
)
flags.mark_flag_as_required("config")


def parse(argv):
  """Parses flags; what cannot be gets one sentence, no traceback.

  Args:
    argv: list of str, as `sys.argv`.

  Returns:
    list of str, the arguments that are no flags.
  """
  try:
    rest = flags.FLAGS(argv)
    CONFIG.value.get("job")  # A file that is not there is told at first use.
    return rest
  except (
      flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError
  ) as error:
    print(f"error: {_sentence(error, argv)}", file=sys.stderr)
    sys.exit(1)


def _sentence(error, argv):
  """Says what is wrong with the flags; the libraries bury it in tracebacks."""
  if isinstance(error, flags.Error) and "\n" not in str(error):
    return str(error)
  cause = error
  while cause.__cause__ or cause.__context__:
    cause = cause.__cause__ or cause.__context__
  last = (str(cause).splitlines() or [repr(cause)])[-1].strip()
  if isinstance(error, AttributeError | KeyError):
    name = last.split()[-1].strip("\"'")
    given = [a.split("=")[0] for a in argv if a.startswith("--config.")]
    fields = [field.removeprefix("--config.") for field in given]
    for field in fields:
      if name == field or name in field.split("."):
        return (
            f"the config has no field {field!r}; only fields that it has can"
            " be given on the command line, others are added in a copy of the"
            " config file."
        )
  return last
