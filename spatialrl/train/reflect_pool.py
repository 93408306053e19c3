"""What the phases of the job `reflect` hand to each other."""

import dataclasses

import numpy as np

from spatialrl.io import assets
from spatialrl.models import checker as models
from spatialrl.models.actor import ActorConfig
from spatialrl.reflect import checker as checkers
from spatialrl.reflect import editing

_CONTEXTS = 6  # keeps this random stream apart from others


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Pictures as the parts make them, for training those that look at them.

  Attributes:
    images: u8[N, S, S, 3]: drawn, then edited by rules.
    prompts: list of N str.
    boxes: list of N dicts, what the detector finds in each.
  """

  images: np.ndarray
  prompts: list
  boxes: list

  def take(self, rows):
    """The rows of a numpy index or mask, as Drawn."""
    return Drawn(self.images[rows],
                 *(np.asarray(v, object)[rows].tolist()
                   for v in (self.prompts, self.boxes)))


def read_drawn(root, name):
  """(images, prompts) of the workdir `root`; name "train" or "held_out"."""
  with np.load(root / "drawn/drawn.npz") as file:
    return file[f"{name}_images"], file[f"{name}_prompts"].tolist()


def load_drawn(root, name):
  """The same as `Drawn`, which takes the detector a while."""
  images, prompts = read_drawn(root, name)
  return Drawn(images, prompts, editing.found_boxes(images))


@dataclasses.dataclass(frozen=True)
class Pool:
  """Images that the Checker does not accept, what a group is about.

  Attributes:
    images: u8[N, S, S, 3].
    prompts: list of N str.
    boxes: list of N dicts from label to box, what the Checker sees.
    probability: f32[N, R], the Checker's.
  """

  images: np.ndarray
  prompts: list
  boxes: list
  probability: np.ndarray

  def take(self, rows):
    """The rows of a numpy index, as a Pool."""
    return Pool(
        self.images[rows],
        [self.prompts[i] for i in rows],
        [self.boxes[i] for i in rows],
        self.probability[rows],
    )


def open_pool(root, name, check, batch):
  """The Pool of the images of the phase `drawn`; `name` as of `load_drawn`."""
  images, prompts = read_drawn(root, name)
  said = checkers.in_batches(check, images, prompts, batch)
  rows = np.flatnonzero(~checkers.accepted(said))
  images, prompts = images[rows], [prompts[i] for i in rows]
  boxes = checkers.in_batches(check.boxes, images, prompts, batch)
  return Pool(images, prompts, list(boxes), said[rows])


def load_checker(root):
  """The Checker of the workdir `root`."""
  return checkers.Checker(*models.load(root / "checker/checker.safetensors"))


def load_actor(root, phase):
  """(ActorConfig, weights) of the Actor that a phase made."""
  params, metadata = assets.load(root / phase / "actor.safetensors")
  return ActorConfig.from_json(metadata["actor"]), params


def contexts(pool, config, step):
  """The images of an iteration, each repeated for its group, as a Pool."""
  rng = np.random.default_rng([config.seed, step, _CONTEXTS])
  rows = rng.choice(len(pool.prompts), config.contexts,
                    replace=len(pool.prompts) < config.contexts)
  return pool.take(np.repeat(rows, config.group))
