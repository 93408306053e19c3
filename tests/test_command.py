"""Flags that cannot be are one sentence."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_QUICKSTART = "configs/quickstart.py"
_PARSE = "import sys; from spatialrl.command import parse; parse(sys.argv)"


@pytest.mark.parametrize(("arguments", "sentence"), [
    (
        (f"{_QUICKSTART}:tiny", "--config.select.kk=2"),
        "the config has no field 'select.kk'; only fields that it has can be"
        " given on the command line, others are added in a copy of the config"
        " file.",
    ),
    (
        (f"{_QUICKSTART}:tiny", "--config.steps=x"),
        "flag --config.steps=x: invalid literal for int() with base 10: 'x'",
    ),
    (
        (f"{_QUICKSTART}:tinyy",),
        "config argument is 'tinyy'; allowed is 'tiny'.",
    ),
    (("gone.py",), "[Errno 2] No such file or directory: 'gone.py'"),
])
def test_a_flag_that_cannot_be_is_one_sentence(arguments, sentence):
  done = subprocess.run(
      [sys.executable, "-c", _PARSE, "--config", *arguments],
      cwd=_ROOT, capture_output=True, text=True, timeout=60,
  )
  assert done.returncode == 1
  assert done.stderr == f"error: {sentence}\n"
