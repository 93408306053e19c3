"""The Actor by rules repairs the relation it looks at."""

import jax
import numpy as np
import pytest

from spatialrl.reflect import rules
from spatialrl.reflect.actors import Rules
from spatialrl.scenes import grammar, instructions
from spatialrl.scenes.holds import holds

A, B = "red circle", "blue square"


def told(text, boxes, count=40):
  graph = grammar.parse(text)
  return [
      rules.act(np.random.default_rng(i), graph, [0], boxes)
      for i in range(count)
  ]


def box(x, y, half=0.12):
  return np.float32([x - half, y - half, x + half, y + half])


@pytest.mark.parametrize("predicate", ["left of", "below", "near", "far from"])
def test_moves_make_the_relation_hold(predicate):
  boxes = {A: box(0.5, 0.5), B: box(0.3, 0.5)}
  said = told(f"a {A} {predicate} a {B}", boxes)
  moves = [t for t in said if t.verb == "move"]
  assert moves
  for t in moves:
    middle = np.array(instructions.centre(t.place))
    moved = boxes | {t.thing: box(*middle)}
    assert holds(predicate, moved[A], moved[B])
  assert all(t.verb in ("move", "swap") for t in said)


def test_sizes_are_changed_and_missing_things_added():
  boxes = {A: box(0.2, 0.5), B: box(0.8, 0.5)}
  said = {(t.verb, t.thing) for t in told(f"a {A} larger than a {B}", boxes)}
  assert said == {("enlarge", A), ("shrink", B)}
  for t in told(f"a {A} left of a {B}", {B: box(0.8, 0.5)}):
    assert (t.verb, t.thing) == ("add", A)
    assert instructions.centre(t.place)[0] < 0.8


def test_rules_say_something_new():
  boxes = {A: box(0.2, 0.2), B: box(0.7, 0.7)}
  prompt = f"a {A} larger than a {B}"
  tried = [instructions.Instruction("enlarge", A)]
  told = [
      Rules()(None, [prompt], np.float32([[0.1]]), [boxes], [tried],
              jax.random.key(key))[0]
      for key in range(8)
  ]
  assert set(told) == {instructions.Instruction("shrink", B)}


def test_only_the_failed_relation_is_looked_at():
  graph = grammar.parse(f"a {A} left of a {B}, a {A} larger than a {B}")
  boxes = {A: box(0.2, 0.5), B: box(0.8, 0.5)}
  for i in range(10):
    said = rules.act(np.random.default_rng(i), graph, [1], boxes)
    assert said.verb in ("enlarge", "shrink")
