"""Slices by name, and the links between their chips."""

import pytest

from spatialrl.parallel import chips


def test_unknown_topologies_list_the_known_ones():
  with pytest.raises(ValueError, match="'v5e:3x7'; allowed are v4:.*v6e:4x4"):
    chips.find("v5e:3x7")


@pytest.mark.parametrize("kind, shape, dimensions, links", [
  ("v5e", (4, 4), (0, 1), 2),  # a corner of a plane
  ("v5e", (4, 4), (1,), 1),
  ("v5e", (16, 16), (0, 1), 4),  # closed to rings
  ("v5p", (2, 2, 4), (0, 1, 2), 4),  # one of three is closed
])
def test_a_corner_has_a_link_a_dimension(kind, shape, dimensions, links):
  place = chips.Slice("", chips.CHIPS[kind], shape)
  assert place.links(dimensions) == links * place.chip.link
