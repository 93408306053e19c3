"""tfds builder `spatial_reward`: pairs of images for one prompt."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from spatialrl.data import scenes
from spatialrl.scenes.datasets import building


@dataclasses.dataclass(eq=False, kw_only=True)
class RewardConfig(tfds.core.BuilderConfig):
  """One set of pairs; equal configs give equal examples.

  Attributes:
    size: int, pixels a side.
    seed: int >= 0.
    relations: tuple of ints, relations a prompt may state.
    perturbed: (low, high), relations the perturbed image contradicts.
    examples: dict from split to the number of its examples.
  """

  size: int
  seed: int = 0
  relations: tuple
  perturbed: tuple
  examples: dict


_ONE = {"relations": (1, 2, 3), "perturbed": (1, 1)}
_MANY = {"relations": (2, 3), "perturbed": (2, 3)}
_FULL = {"train": 20_000, "validation": 2_000, "held_out": 2_000}
_FEW = {"train": 96, "validation": 32, "held_out": 32}


class SpatialReward(tfds.core.GeneratorBasedBuilder):
  """A perfect and a perturbed image for every prompt."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Four directions, one to three relations."}
  BUILDER_CONFIGS = [
      RewardConfig(
          name="size32",
          description="32 x 32 pixels, one contradicted relation.",
          size=32, examples=_FULL, **_ONE,
      ),
      RewardConfig(
          name="size32_many",
          description="32 x 32 pixels, two or three contradicted relations.",
          size=32, examples=_FULL, **_MANY,
      ),
      RewardConfig(
          name="size16",
          description="16 x 16 pixels, few examples, for tests.",
          size=16, examples=_FEW, **_ONE,
      ),
      RewardConfig(
          name="size16_many",
          description="16 x 16 pixels, two or three contradicted relations.",
          size=16, examples=_FEW, **_MANY,
      ),
  ]
  DEFAULT_CONFIG_NAME = "size32"

  def _info(self):
    size = self.builder_config.size
    image = tfds.features.Image(shape=(size, size, 3), encoding_format="png")
    return building.info(
        self,
        "Pairs of images of the same coloured shapes. `perfect` satisfies"
        " `prompt`; `perturbed` was drawn anew for `perturbed_prompt` and"
        " breaks `contradicted` relations of `prompt`. The split `held_out`"
        " relates pairs of labels that the others never do.",
        {
            "prompt": tfds.features.Text(),
            "perturbed_prompt": tfds.features.Text(),
            "perfect": image,
            "perturbed": image,
            "contradicted": tfds.features.Scalar(dtype=np.int32),
        },
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return building.split_generators(self)

  def _generate_examples(self, split):
    examples = self.builder_config.examples[split]
    return building.draw(self._batch, split, examples)

  def _batch(self, step, batch, held_out):
    config = self.builder_config
    pairs = scenes.reward_pairs(
        config.seed, step, batch, size=config.size,
        relations=config.relations, perturbed=config.perturbed,
        held_out=held_out,
    )
    return [
        {
            "prompt": pairs.prompts[i],
            "perturbed_prompt": pairs.perturbed_prompts[i],
            "perfect": Image.fromarray(pairs.perfect[i]),
            "perturbed": Image.fromarray(pairs.perturbed[i]),
            "contradicted": pairs.contradicted[i],
        }
        for i in range(batch)
    ]
