"""What a detector says of an image: a list of objects; no rules here."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
  """One detected object.

  Attributes:
    label: class name, with its attributes if the detector names them.
    box: f32[4], corners (x1, y1, x2, y2), y down, in the detector's unit:
      pixels, or shares of the image's side.
    score: confidence in [0, 1].

  Raises:
    ValueError: if `box` is not an f32[4] array.
  """

  label: str
  box: np.ndarray
  score: float

  def __post_init__(self):
    box = np.asarray(self.box)
    if box.shape != (4,) or box.dtype != np.float32:
      raise ValueError(
        f"Detection.box of {self.label!r} is {box.dtype}{list(box.shape)};"
        " it must be a float32 array of shape [4]."
      )


def above(detections, min_score):
  """Detections with score > min_score, both rounded to float32.

  The published evaluations compare float32 scores with a Python number, which
  rounds the threshold: a score equal to float32(min_score) is dropped.
  """
  low = np.float32(min_score)
  return [found for found in detections if np.float32(found.score) > low]


def by_score(detections):
  """Most confident first; equal scores keep their order."""
  return sorted(detections, key=lambda found: found.score, reverse=True)
