"""Properties of the spatial rules on whole images."""

import numpy as np
import pytest

from spatialrl.scenes.compbench import t2i_2d_score, t2i_3d_score
from spatialrl.scenes.detection import Detection
from spatialrl.scenes.geneval import Clause, geneval_correct
from spatialrl.scenes.graph_iou import scene_graph_iou
from spatialrl.scenes.visor import visor_decision, visor_scores


def _seen(label, box, score=0.9):
  return Detection(label, np.asarray(box, np.float32), score)


_PROMPT = [Clause("cup"), Clause("dog", position=("left of", 0))]
_RIGHT = [_seen("dog", [0, 0, 40, 40], 0.9), _seen("cup", [200, 0, 240, 40])]


def test_geneval_forgives_extras_unless_excluded():
  extra = [*_RIGHT, _seen("dog", [400, 0, 440, 40], 0.5)]
  assert geneval_correct(_RIGHT, _PROMPT)
  assert geneval_correct(extra, _PROMPT)
  assert not geneval_correct(extra, _PROMPT, exclude=[Clause("dog", 2)])
  assert geneval_correct(_RIGHT, _PROMPT, exclude=[Clause("dog", 2)])


def test_geneval_judges_the_most_confident_box():
  wrong = _seen("dog", [400, 0, 440, 40], 0.95)
  assert not geneval_correct([*_RIGHT, wrong], _PROMPT)


def test_geneval_needs_every_pair():
  dogs = [_seen("dog", [x, 0, x + 20, 20], 0.9) for x in (0, 40, 400)]
  image = [*dogs, _seen("cup", [200, 0, 220, 20])]
  two, three = (
    [Clause("cup"), Clause("dog", n, ("left of", 0))] for n in (2, 3)
  )
  assert geneval_correct(image, two)
  assert not geneval_correct(image, three)
  assert not geneval_correct(image[1:], three)


def test_geneval_compares_with_the_clause_it_points_to():
  image = [*_RIGHT, _seen("kite", [100, 0, 140, 40])]  # dog, kite, cup
  left_of_cup, left_of_dog = (
    [*_PROMPT, Clause("kite", position=("left of", i))] for i in (0, 1)
  )
  assert geneval_correct(image, left_of_cup)
  assert not geneval_correct(image, left_of_dog)


def test_geneval_has_no_target_in_a_failed_clause():
  chain = [*_PROMPT, Clause("cup", position=("right of", 1))]
  assert geneval_correct(_RIGHT, chain)
  assert not geneval_correct(_RIGHT, [Clause("cup", 2), *_PROMPT[1:]])


def test_visor_accepts_any_pair():
  wrong = [_seen("dog", [400, 0, 440, 40], 0.95), _RIGHT[1]]
  assert visor_decision(wrong, "dog", "cup", "left of") == (True, True, False)
  some = [*wrong, _seen("dog", [0, 0, 40, 40], 0.2)]
  assert visor_decision(some, "dog", "cup", "left of").correct


@pytest.mark.parametrize("low", [0.1, np.float64(0.1)])
def test_thresholds_are_strict_in_float32(low):
  faint = [_seen("dog", [0, 0, 9, 9], float(np.float32(0.1))), _RIGHT[1]]
  assert float(np.float32(0.1)) > 0.1
  seen = visor_decision(faint, "dog", "cup", "left of", min_score=low)
  assert seen == (False, True, False)
  assert not geneval_correct(faint, [Clause("dog")], min_score=low)


def test_visor_scores_are_consistent(rng):
  decisions = rng.random((50, 4, 3)) < 0.6
  scores = visor_scores(decisions)
  assert scores["visor_uncond"] == pytest.approx(
    scores["visor_cond"] * scores["both"] / 100
  )
  counts = [scores[f"visor_{n}"] for n in (1, 2, 3, 4)]
  assert counts == sorted(counts, reverse=True)
  assert sum(counts) == pytest.approx(4 * scores["visor_uncond"])
  assert np.isnan(visor_scores(np.zeros((2, 4, 3), bool))["visor_cond"])


def test_t2i_2d_score_gates_out_one_object():
  def score(image):
    return t2i_2d_score(image, "dog", "cup", "on the left of")

  assert score(_RIGHT) == pytest.approx(0.25 * 0.9 * 2 + 0.5)
  assert score(_RIGHT[:1]) == 0
  assert score([]) == 0
  assert t2i_2d_score(_RIGHT, "dog", "cup", "on the right of") == 0


def test_t2i_names_match_whole_labels_in_2d_and_parts_in_3d():
  image = [_seen("hot dog", _RIGHT[0].box), _RIGHT[1]]
  depth = np.zeros((50, 250))
  assert t2i_2d_score(image, "dog", "cup", "on the left of") == 0
  assert t2i_2d_score(image, "cup", "dog", "on the right of") == 0
  found = t2i_3d_score(image, "dog", "cup", "behind", depth, slicing="yx")
  assert found == pytest.approx(0.25 * 1.8)


def test_t2i_2d_gate_lets_two_certain_objects_pass():
  sure = [_seen(found.label, found.box, 1.0) for found in _RIGHT]
  assert t2i_2d_score(sure, "dog", "cup", "on the right of") == 0.5


def test_t2i_3d_score_uses_the_last_box_before_the_other_class():
  depth = np.repeat(np.arange(40), 40).reshape(40, 40)
  cup = _seen("cup", [0, 5, 20, 25], 0.5)
  dogs = [_seen("dog", [0, 10, 20, 30], 0.9), _seen("dog", [0, 0, 20, 20], 0.8)]
  last = _seen("dog", [0, 10, 20, 30], 0.4)

  def score(image):
    return t2i_3d_score(image, "dog", "cup", "behind", depth, slicing="yx")

  assert score([*dogs, cup, last]) == pytest.approx(0.25 * 1.3 + 0.5)
  assert score([last, cup, *dogs]) == pytest.approx(0.25 * 1.3 + 0.5)
  assert score([dogs[0], cup]) == pytest.approx(0.25 * 1.4)
  assert score(dogs) == pytest.approx(0.25 * 0.9)


def test_image_rules_ignore_the_order_of_the_list(rng):
  depth = rng.integers(0, 256, (64, 64))

  def judge(image):
    return (
      geneval_correct(image, _PROMPT),
      visor_decision(image, "dog", "cup", "left of"),
      t2i_2d_score(image, "dog", "cup", "on the left of"),
      t2i_3d_score(image, "dog", "cup", "behind", depth, slicing="yx"),
    )

  answers = set()
  for _ in range(100):
    corners = rng.uniform(0, 50, (4, 2))
    boxes = np.concatenate([corners, corners + 12], axis=1)
    names = ("dog", "cup", "dog", "cup")
    image = list(map(_seen, names, boxes, rng.random(4)))
    answers.add(judge(image)[0])
    shuffled = [image[i] for i in rng.permutation(4)]
    assert judge(shuffled) == judge(image)
  assert answers == {True, False}


def test_scene_graph_iou_compares_sets():
  truth = [("dog", "left of", "cup"), ("cup", "above", "kite")]
  names, words = ["dog", "cup", "kite"], ["left of", "above"]
  assert scene_graph_iou(truth, truth * 2, names, words) == (1, 1, 1)
  turned = [("cup", "left of", "dog"), truth[1]]
  assert scene_graph_iou(truth, turned, names, words) == (1 / 3, 1, 1)
  assert scene_graph_iou(truth, [], ["dog", "fork"], []) == (0, 1 / 4, 0)
  assert scene_graph_iou([], [], [], []) == (0, 0, 0)


def test_errors_name_what_is_allowed():
  with pytest.raises(ValueError, match="'under'.*left of, right of"):
    visor_decision(_RIGHT, "dog", "cup", "under")
  with pytest.raises(ValueError, match="'left of'.*on the left of"):
    t2i_2d_score(_RIGHT, "dog", "cup", "left of")
  with pytest.raises(ValueError, match="'left'.*left of, right of"):
    geneval_correct([], [Clause("a"), Clause("b", position=("left", 0))])
  with pytest.raises(ValueError, match="clause 0 points to clause 0"):
    geneval_correct([], [Clause("a", position=("left of", 0))])
  with pytest.raises(ValueError, match="same number"):
    visor_scores([[(True, True, True)], []])
  with pytest.raises(ValueError, match=r"float64\[4\].*float32"):
    Detection("dog", np.zeros(4), 0.5)
