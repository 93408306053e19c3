"""Properties of the spatial rules on pairs of boxes."""

import numpy as np
import pytest

from spatialrl.scenes import relations

_SWAPPED = [1, 0, 3, 2]  # columns of RELATIONS seen from the other object
_LEFT = relations.RELATIONS.index("left of")
_POSITIONS = (relations.geneval_position, relations.visor_position)


def _boxes(rng, n, side=512.0):
  """f64[n, 4] boxes inside a square, sides 0.15 to 0.6 of it."""
  sides = rng.uniform(0.15, 0.6, (n, 2)) * side
  corner = rng.uniform(0.0, 1.0, (n, 2)) * (side - sides)
  return np.concatenate([corner, corner + sides], axis=1)


def _square(x, y, side):
  return np.array([x, y, x + side, y + side], np.float32)


def _holding(box_a, box_b):
  answer = relations.geneval_position(box_a, box_b)
  return [relations.RELATIONS[i] for i in np.flatnonzero(answer)]


@pytest.mark.parametrize("position", _POSITIONS)
def test_swapping_the_boxes_flips_the_relation(position, rng):
  a, b = _boxes(rng, 500), _boxes(rng, 500)
  forward = position(a, b)
  assert forward.any(axis=0).all()
  np.testing.assert_array_equal(position(b, a), forward[:, _SWAPPED])


@pytest.mark.parametrize("position", _POSITIONS)
def test_relations_ignore_scale_and_translation(position, rng):
  a, b = _boxes(rng, 500), _boxes(rng, 500)
  expected = position(a, b)
  np.testing.assert_array_equal(position(4.0 * a, 4.0 * b), expected)
  np.testing.assert_array_equal(position(a + 64.0, b + 64.0), expected)


@pytest.mark.parametrize("position", _POSITIONS)
def test_a_box_has_no_relation_to_itself(position, rng):
  boxes = _boxes(rng, 50)
  assert not position(boxes, boxes).any()


@pytest.mark.parametrize("position", _POSITIONS)
def test_pair_rules_broadcast(position, rng):
  a, b = _boxes(rng, 3), _boxes(rng, 5)
  table = position(a[:, None], b)
  assert table.shape == (3, 5, 4)
  np.testing.assert_array_equal(table[2, 4], position(a[2], b[4]))


@pytest.mark.parametrize("gap, expected", [(39, []), (41, ["left of"])])
def test_geneval_needs_two_fifths_of_equal_boxes(gap, expected):
  assert _holding(_square(0, 0, 100), _square(gap, 0, 100)) == expected


def test_geneval_far_points_on_the_diagonal_have_two_relations():
  points = _square(10, 10, 1), _square(400, 400, 1)
  assert _holding(*points) == ["left of", "above"]


def test_geneval_ignores_a_shift_under_a_thousandth_of_a_pixel():
  point = np.array([10.0, 10.0, 10.0, 10.0])
  assert _holding(point, point + [9e-4, 0, 9e-4, 0]) == []
  assert _holding(point, point + [2e-3, 0, 2e-3, 0]) == ["left of"]


def test_geneval_takes_corners_in_either_order(rng):
  a, b = _boxes(rng, 500), _boxes(rng, 500)
  expected = relations.geneval_position(a, b)
  turned_a, turned_b = a[:, [2, 3, 0, 1]], b[:, [2, 3, 0, 1]]
  np.testing.assert_array_equal(
    relations.geneval_position(turned_a, b), expected
  )
  np.testing.assert_array_equal(
    relations.geneval_position(a, turned_b), expected
  )


def test_boxes_without_area_do_not_overlap():
  assert relations.iou(np.full(4, 5.0), np.full(4, 5.0)) == 0


def test_chance_levels(rng):
  a, b = _boxes(rng, 100_000), _boxes(rng, 100_000)
  geneval = relations.geneval_position(a, b).mean(axis=0)
  np.testing.assert_allclose(geneval, 0.203, atol=0.005)
  visor = relations.visor_position(a, b).mean(axis=0)
  np.testing.assert_allclose(visor, 0.5, atol=0.005)
  t2i = relations.t2i_2d_position(a, b)[:, :4].mean(axis=0)
  np.testing.assert_allclose(t2i, 0.195, atol=0.005)


def test_t2i_2d_charges_overlap():
  box = _square(0, 0, 100)
  for shift in (50, 80, 82, 100, 300):
    other = _square(shift, 0, 100)
    overlap = max(100 - shift, 0) / (100 + min(shift, 100))
    assert relations.iou(box, other) == pytest.approx(overlap)
    left = relations.t2i_2d_position(box, other)[_LEFT]
    assert left == pytest.approx(1 if overlap < 0.1 else 0.1 / overlap)


def test_t2i_2d_scores_at_most_one_direction(rng):
  a, b = _boxes(rng, 500, 480.0), _boxes(rng, 500, 480.0)
  forward = relations.t2i_2d_position(a, b)
  assert ((forward[:, :4] > 0).sum(axis=1) == 1).all()
  assert (forward >= 0).all() and (forward <= 1).all()
  expected = forward[:, _SWAPPED + [4, 5, 6, 7]]
  np.testing.assert_allclose(relations.t2i_2d_position(b, a), expected)


def test_t2i_2d_distance_is_in_the_frame_of_the_boxes(rng):
  a, b = _boxes(rng, 500, 480.0), _boxes(rng, 500, 480.0)
  full = relations.t2i_2d_position(a, b)
  half = relations.t2i_2d_position(a / 2, b / 2, near_distance=75.0)
  np.testing.assert_allclose(half, full, rtol=1e-12)
  assert (full[:, 4:7] < 1).any()


def test_t2i_3d_reads_the_map_by_rows_or_as_published(rng):
  depth = rng.integers(0, 256, (48, 48))
  box = np.array([3.7, 20.2, 11.9, 46.0])
  intended = relations.mean_depth(box, depth, slicing="yx")
  published = relations.mean_depth(box, depth, slicing="xy")
  assert intended == pytest.approx(depth[20:46, 3:11].mean())
  assert published == pytest.approx(depth[3:11, 20:46].mean())
  assert np.isnan(relations.mean_depth([5, 5, 5, 9], depth, slicing="yx"))


def test_t2i_3d_needs_depth_order_and_overlap():
  depth = np.repeat(np.arange(40), 40).reshape(40, 40)  # nearer further down

  def score(box_a, box_b):
    return relations.t2i_3d_position(box_a, box_b, depth, slicing="yx")

  far, near = [0, 0, 20, 20], [0, 5, 20, 25]  # IoU 0.6
  np.testing.assert_array_equal(score(near, far), [1, 0, 0])
  np.testing.assert_array_equal(score(far, near), [0, 1, 1])
  np.testing.assert_array_equal(score(far, far), [0, 0, 0])
  np.testing.assert_allclose(score([0, 10, 20, 30], far), [2 / 3, 0, 0])
  np.testing.assert_array_equal(score([0, 20, 20, 40], far), [0, 0, 0])
  half = [0, 10, 20, 20]  # IoU exactly 1/2
  np.testing.assert_array_equal(score(half, far), [0, 0, 0])


def test_depth_errors_name_what_is_allowed():
  depth = np.zeros((4, 4))
  with pytest.raises(ValueError, match="'rows'.*yx.*xy"):
    relations.mean_depth([0, 0, 1, 1], depth, slicing="rows")
  with pytest.raises(ValueError, match=r"\(2, 4, 4\).*\[H, W\]"):
    relations.mean_depth([0, 0, 1, 1], np.stack([depth] * 2), slicing="yx")
