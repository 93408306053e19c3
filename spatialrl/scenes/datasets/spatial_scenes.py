"""tfds builder `spatial_scenes`: images, what they show, and captions."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from spatialrl.data import scenes
from spatialrl.scenes import grammar, render
from spatialrl.scenes import graph as graphs
from spatialrl.scenes.datasets import building

LABELS = tuple(f"{c} {s}" for c in graphs.COLOURS for s in graphs.SHAPES)


@dataclasses.dataclass(eq=False, kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
  """One set of scenes; equal configs give equal examples.

  Attributes:
    size: int, pixels a side.
    seed: int >= 0.
    relations: tuple of ints, relations a scene may state.
    wrong_share: float in [0, 1], share of captions with one wrong relation.
    examples: dict from split to the number of its examples.
  """

  size: int
  seed: int = 0
  relations: tuple = (1, 2, 3)
  wrong_share: float = 0.5
  examples: dict


class SpatialScenes(tfds.core.GeneratorBasedBuilder):
  """Scenes of coloured shapes with captions of which some are wrong."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Four directions, one to three relations."}
  BUILDER_CONFIGS = [
      ScenesConfig(
          name="size32",
          description="32 x 32 pixels.",
          size=32,
          examples={"train": 20_000, "validation": 2_000, "held_out": 2_000},
      ),
      ScenesConfig(
          name="size16",
          description="16 x 16 pixels, few examples, for tests.",
          size=16,
          examples={"train": 96, "validation": 32, "held_out": 32},
      ),
  ]
  DEFAULT_CONFIG_NAME = "size32"

  def _info(self):
    size = self.builder_config.size
    return building.info(
        self,
        "Scenes of coloured shapes. `prompt` is true of the image and gives"
        " its scene graph back (spatialrl.scenes.grammar.parse); `caption` has"
        " one wrong relation with the config's probability `wrong_share`. The"
        " split `held_out` relates pairs of labels that the others never do.",
        {
            "image": tfds.features.Image(
                shape=(size, size, 3), encoding_format="png"
            ),
            "prompt": tfds.features.Text(),
            "caption": tfds.features.Text(),
            # In the prompt's order of mention; (x1, y1, x2, y2), y down, as
            # shares of the image's side.
            "objects": tfds.features.Sequence({
                "label": tfds.features.ClassLabel(names=LABELS),
                "box": tfds.features.BBoxFeature(bbox_format="REL_XYXY"),
            }),
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
    captions, shown, placed = scenes.captioned_layouts(
        config.seed, step, batch, relations=config.relations,
        wrong_share=config.wrong_share, held_out=held_out,
    )
    images = render.render_batch(shown, placed, config.size)
    return [
        {
            "image": Image.fromarray(image),
            "prompt": grammar.prompt(graph),
            "caption": caption,
            "objects": _objects(graph, layout),
        }
        for image, caption, graph, layout in zip(
            images, captions, shown, placed, strict=True
        )
    ]


def _objects(graph, layout):
  boxes = np.clip(layout.boxes, 0, 1)  # f32 may leave the picture by an ulp
  return [
      {"label": graph.things[thing].label, "box": box}
      for thing, box in zip(layout.thing, boxes, strict=True)
  ]
