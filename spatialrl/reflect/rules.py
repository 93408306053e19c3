"""The Actor by rules: a template for one failed relation at a time.

It sees boxes of the detector instead of pixels. The rule looks at the relation
it repairs and at nothing else, so a repair may break another relation or land
on another thing: what is left for Reflection-GRPO to learn. Ours.
"""

import numpy as np

from spatialrl.scenes import instructions
from spatialrl.scenes.graph import DIRECTIONS
from spatialrl.scenes.holds import holds
from spatialrl.scenes.instructions import Instruction

_SWAPPED = 0.25  # share of repairs of a direction that exchange the two things
_USUAL = 0.14  # half the side of a thing that is not there yet
_LARGER = {"larger than": "enlarge", "smaller than": "shrink"}
_OTHER = {"larger than": "shrink", "smaller than": "enlarge"}


def act(rng, graph, failed, boxes):
  """Writes an instruction that repairs one failed relation.

  Args:
    rng: numpy Generator.
    graph: SceneGraph of the prompt.
    failed: indices of the relations that do not hold, at least one.
    boxes: dict from label to f32[4], what was found, shares of the side.

  Returns:
    Instruction.
  """
  relation = graph.relations[failed[rng.integers(len(failed))]]
  subject, other = (
      graph.things[i].label for i in (relation.subject, relation.object)
  )
  predicate = relation.predicate
  missing = [name for name in (subject, other) if name not in boxes]
  if missing:
    thing = missing[0]
    fitting = _fitting(boxes, relation, graph, thing)
    return Instruction("add", thing, _pick(rng, fitting))
  if predicate in _LARGER:
    if rng.uniform() < 0.5:
      return Instruction(_LARGER[predicate], subject)
    return Instruction(_OTHER[predicate], other)
  if predicate in DIRECTIONS and rng.uniform() < _SWAPPED:
    return Instruction("swap", subject, other=other)
  thing = (subject, other)[rng.integers(2)]
  fitting = _fitting(boxes, relation, graph, thing)
  if not fitting:
    return Instruction("swap", subject, other=other)
  return Instruction("move", thing, _pick(rng, fitting))


def _fitting(boxes, relation, graph, thing):
  """Places at which a thing would stand as the relation says."""
  subject, other = (
      graph.things[i].label for i in (relation.subject, relation.object)
  )
  still = other if thing == subject else subject
  if still not in boxes:
    return []
  half = _USUAL
  if thing in boxes:
    half = (boxes[thing][2:] - boxes[thing][:2]).mean() / 2
  places = []
  for place in instructions.PLACES:
    middle = np.array(instructions.centre(place))
    there = np.concatenate([middle - half, middle + half]).astype(np.float32)
    pair = {thing: there, still: boxes[still]}
    if holds(relation.predicate, pair[subject], pair[other]):
      places.append(place)
  return places


def _pick(rng, places):
  """One of the places, or of all where none fits."""
  places = places or instructions.PLACES
  return places[rng.integers(len(places))]
