"""The spatial rules against what the published implementations returned."""

import numpy as np
import pytest

from spatialrl.scenes import relations
from spatialrl.scenes.compbench import t2i_2d_score, t2i_3d_score
from spatialrl.scenes.detection import Detection
from spatialrl.scenes.geneval import (
  GENEVAL_COUNTING_MIN_SCORE,
  GENEVAL_MIN_SCORE,
  Clause,
  geneval_correct,
  geneval_kept,
)
from spatialrl.scenes.graph_iou import scene_graph_iou
from spatialrl.scenes.visor import visor_decision, visor_scores

_COUNTING = 2  # `tag` of the counting prompts
_NAMES = ("bear", "cup", "dog", "fork", "kite")


def _images(data):
  """Yields the detections of each image; class ids become `_NAMES`."""
  columns = (data[f"det_{name}"] for name in ("class", "box", "score"))
  for image in zip(*columns, strict=True):
    yield [
      Detection(_NAMES[label], box, float(score))
      for label, box, score in zip(*image, strict=True)
      if label >= 0
    ]


def test_geneval_position(golden):
  data = golden("spatial/geneval_position.npz")
  ours = relations.geneval_position(data["box_a"], data["box_b"])
  clear = data["margin"] > 1e-5
  assert clear.sum() > 2000
  np.testing.assert_array_equal(ours[clear], data["relations"][clear])
  np.testing.assert_array_equal(ours[clear], data["relations_f64"][clear])


def _clauses(data, image):
  include = []
  for label, count in data["include"][image]:
    if label >= 0:
      wanted = data["position"][image]
      position = (
        (relations.RELATIONS[wanted], 0) if include and wanted >= 0 else None
      )
      include.append(Clause(_NAMES[label], int(count), position))
  label, count = data["exclude"][image]
  exclude = [Clause(_NAMES[label], int(count))] if label >= 0 else []
  return include, exclude


def test_geneval_scenes(golden):
  data = golden("spatial/geneval_scenes.npz")
  kept, correct = [], []
  for image, detections in enumerate(_images(data)):
    low = (
      GENEVAL_COUNTING_MIN_SCORE
      if data["tag"][image] == _COUNTING
      else GENEVAL_MIN_SCORE
    )
    include, exclude = _clauses(data, image)
    boxes = geneval_kept(detections, min_score=low)
    kept.append([len(boxes.get(name, ())) for name in _NAMES])
    correct.append(
      geneval_correct(detections, include, exclude=exclude, min_score=low)
    )
  np.testing.assert_array_equal(kept, data["kept_per_class"])
  np.testing.assert_array_equal(correct, data["correct"])


def test_visor(golden):
  data = golden("spatial/visor.npz")
  decisions = np.array(
    [
      visor_decision(
        detections, _NAMES[0], _NAMES[1], relations.RELATIONS[wanted]
      )
      for detections, wanted in zip(
        _images(data), data["relation"], strict=True
      )
    ]
  )
  np.testing.assert_array_equal(decisions[:, :2].sum(1), data["recall"])
  np.testing.assert_array_equal(decisions[:, :2].all(1), data["both"])
  np.testing.assert_array_equal(decisions[:, 2], data["sra"])
  scores = visor_scores(decisions.reshape(-1, 4, 3))
  expected = [
    *data["object_accuracy"],
    data["visor_cond"],
    data["visor_uncond"],
    *data["visor_n"],
  ]
  names = ("subject", "reference", "both", "visor_cond", "visor_uncond")
  assert tuple(scores) == names + tuple(f"visor_{n}" for n in (1, 2, 3, 4))
  np.testing.assert_allclose(list(scores.values()), expected, rtol=0, atol=1e-9)


def test_t2i_2d_position(golden):
  data = golden("spatial/t2i_compbench_2d.npz")
  np.testing.assert_allclose(
    relations.t2i_2d_position(data["box_a"], data["box_b"]),
    data["position_score"],
    rtol=0,
    atol=1e-6,
  )


def test_t2i_2d_score(golden):
  data = golden("spatial/t2i_compbench_2d.npz")
  ours = [
    t2i_2d_score(
      detections, _NAMES[0], _NAMES[1], relations.T2I_2D_RELATIONS[wanted]
    )
    for detections, wanted in zip(_images(data), data["locality"], strict=True)
  ]
  np.testing.assert_allclose(ours, data["image_score"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
  "slicing, suffix, score",
  [("xy", "", "score_peer"), ("yx", "_yx", "score_yx")],
)
def test_t2i_3d_position(golden, slicing, suffix, score):
  data = golden("spatial/t2i_compbench_3d.npz")
  depth_a, depth_b = (data[f"mean_depth_{box}{suffix}"] for box in "ab")
  clear = ~(np.abs(depth_a - depth_b) < 1e-6)  # keeps empty boxes, NaN
  assert clear.sum() > 1990
  for index, levels in enumerate(data["depth_u8"]):
    rows = data["depth_index"] == index
    a, b, depth = data["box_a"][rows], data["box_b"][rows], levels / 255.0
    for boxes, expected in ((a, depth_a[rows]), (b, depth_b[rows])):
      np.testing.assert_allclose(
        relations.mean_depth(boxes, depth, slicing=slicing),
        expected,
        rtol=0,
        atol=1e-6,
      )
    ours = relations.t2i_3d_position(a, b, depth, slicing=slicing)
    np.testing.assert_allclose(
      ours[clear[rows]], data[score][rows & clear], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("slicing, suffix", [("xy", "peer"), ("yx", "yx")])
def test_t2i_3d_score(golden, slicing, suffix):
  data = golden("spatial/t2i_compbench_3d.npz")
  depth = data["depth_u8"] / 255.0
  ours = np.array(
    [
      t2i_3d_score(
        detections,
        _NAMES[0],
        _NAMES[1],
        relations.T2I_3D_RELATIONS[wanted],
        depth[index],
        slicing=slicing,
      )
      for detections, wanted, index in zip(
        _images(data), data["locality"], data["det_depth_index"], strict=True
      )
    ]
  )
  clear = ~(np.abs(data[f"depth_gap_{suffix}"]) < 1e-6)
  assert clear.sum() > 1990
  np.testing.assert_allclose(
    ours[clear], data[f"image_score_{suffix}"][clear], rtol=0, atol=1e-6
  )


def test_laion_sg_iou(golden):
  data = golden("spatial/laion_sg_iou.npz")
  names = ("gt_triples", "pred_triples", "pred_objects", "pred_predicates")
  ours = []
  for image in zip(*(data[name] for name in names), strict=True):
    truth, predicted = (t[t[:, 0] >= 0].tolist() for t in image[:2])
    objects, predicates = (x[x >= 0].tolist() for x in image[2:])
    ours.append(scene_graph_iou(truth, predicted, objects, predicates))
  np.testing.assert_allclose(ours, data["iou"], rtol=0, atol=1e-12)
