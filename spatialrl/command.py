"""What the commands have in common."""

import sys

from absl import app


def parse(argv):
  """Parses flags; a config that cannot be gets one sentence, no traceback."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
    text = " ".join(str(error).split())
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)
