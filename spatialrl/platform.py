"""Settings of the process that must be made before any work."""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def prepare_process():
  """Quiets transformers and lets glibc keep what XLA's CPU backend frees.

  transformers would tell every run that PyTorch is not there. XLA allocates the
  temporaries of a program anew each time it runs it; by default glibc takes
  them from the kernel and gives them back, and a third of the time of a small
  training step goes into zeroing fresh pages.
  """
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  if platform.libc_ver()[0] != "glibc":
    return
  libc = ctypes.CDLL(None)
  libc.mallopt(_M_MMAP_MAX, 0)
  libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
  libc.mallopt(_M_TOP_PAD, 64 << 20)
