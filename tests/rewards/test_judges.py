"""What a judge claims, and judges that do not exist."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from spatialrl.parallel.mesh import make_mesh
from spatialrl.records import Signals
from spatialrl.rewards import judges
from spatialrl.scenes import grammar, render
from spatialrl.scenes.layout import Layout

_PROMPTS = ["p0", "p1", "p2"]
_FLIPS = [["p0 x"], ["p1 x", "p1 y"], []]


def judge_by(table):
  """A judge that looks scores up by (image index, prompt)."""

  def judge(images, prompts):
    index = np.rint((images[:, 0, 0, 0] + 1) * 127.5).astype(int)
    pairs = zip(index.tolist(), prompts, strict=True)
    return Signals(scalar=np.array([table[p] for p in pairs], np.float32))

  return judge


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_a_claim_beats_every_flip_for_the_same_image(batch):
  images = np.arange(3, dtype=np.uint8)[:, None, None, None]
  images = np.broadcast_to(images, (3, 4, 4, 3))
  table = {
      (0, "p0"): 1.0, (0, "p0 x"): 0.5,
      (1, "p1"): 1.0, (1, "p1 x"): 0.0, (1, "p1 y"): 1.0,
      (2, "p2"): -9.0,
  }
  claimed = judges.claims(judge_by(table), images, _PROMPTS, _FLIPS, batch)
  np.testing.assert_array_equal(claimed, [True, False, True])


def test_the_oracle_judges_pixels():
  prompt = "a red circle left of a blue square"
  layout = Layout(
      np.array([(0.25, 0.5), (0.75, 0.5)], np.float32),
      np.array([0.14, 0.14], np.float32),
      np.arange(2, dtype=np.int32),
  )
  image = render.to_float(render.render(grammar.parse(prompt), layout))
  mesh = make_mesh((-1, 1, 1))
  made = judges.make_judges(ConfigDict({"oracle": {}}), mesh)
  flipped = "a red circle right of a blue square"
  signals = made["oracle"](np.stack([image, image]), [prompt, flipped])
  np.testing.assert_array_equal(signals.scalar, [1.0, 0.0])


def test_an_unknown_judge_is_named():
  with pytest.raises(ValueError, match=r"'clip'.*spatial_score"):
    judges.make_judges(ConfigDict({"clip": {}}), make_mesh((-1, 1, 1)))
