"""Scorers for worker processes, good and bad; what they do is in the prompt."""

import os
import pathlib
import signal
import time


class Scorer:
  """The mean of an image, unless the prompt names a fault."""

  def __init__(self, marker=None):
    self._marker = marker and pathlib.Path(marker)

  def __call__(self, images, prompts):
    if "short" in prompts:
      return [1.0] * (len(prompts) - 1)
    if "mapping" in prompts:
      return {"scores": [1.0] * len(prompts)}
    return [
      self._one(image, prompt)
      for image, prompt in zip(images, prompts, strict=True)
    ]

  def _one(self, image, prompt):
    if prompt == "hang":
      time.sleep(600)
    elif prompt == "freeze":
      os.kill(os.getpid(), signal.SIGSTOP)
    elif prompt == "die":
      os.kill(os.getpid(), signal.SIGKILL)
    elif prompt == "leave":
      os._exit(3)
    elif prompt == "raise":
      raise RuntimeError("no such luck")
    elif prompt == "late":
      time.sleep(4.0)
    elif prompt == "die once" and not self._marker.exists():
      self._marker.touch()
      os.kill(os.getpid(), signal.SIGKILL)
    values = {"nan": float("nan"), "none": None, "text": "9", "true": True,
              "huge": 10**400, "list": [1.0], "inf": float("inf")}
    return values.get(prompt, float(image.mean()))


def broken():
  """A scorer that cannot be made."""
  raise OSError("no weights here")
