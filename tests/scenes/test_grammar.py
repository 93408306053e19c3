"""Graphs, and the sentences made of them and read back."""

import itertools

import pytest

from spatialrl.scenes import grammar
from spatialrl.scenes import graph as graphs

LABELS = list(itertools.product(graphs.COLOURS, graphs.SHAPES))


def _random_graph(rng):
  """Up to four things with any size and count, any relations of singles."""
  kinds = rng.permutation(len(LABELS))[: rng.integers(1, 5)]
  things = tuple(
      graphs.Thing(
          *LABELS[kind],
          (None, *graphs.SIZES)[rng.integers(3)],
          int(rng.choice((1, 1, 1, 2, 3, 4))),
      )
      for kind in kinds
  )
  single = [i for i, thing in enumerate(things) if thing.count == 1]
  pairs = list(itertools.permutations(single, 2))
  chosen = rng.permutation(len(pairs))[: rng.integers(0, 6)]
  relations = tuple(
      graphs.Relation(
          pairs[k][0],
          graphs.PREDICATES[rng.integers(len(graphs.PREDICATES))],
          pairs[k][1],
      )
      for k in chosen
  )
  return graphs.SceneGraph(things, relations)


def test_a_prompt_gives_its_graph_back(rng):
  for _ in range(300):
    graph = _random_graph(rng)
    text = grammar.prompt(graph)
    assert grammar.parse(text) == graph.in_mention_order()
    assert grammar.prompt(grammar.parse(text)) == text
    assert _stated(grammar.parse(text)) == _stated(graph)


def _stated(graph):
  """The relations with things in place of their numbers."""
  return [
      (graph.things[r.subject], r.predicate, graph.things[r.object])
      for r in graph.relations
  ]


def test_prompts_are_plain_english():
  crosses = graphs.Thing("red", "cross", "large", 2)
  orange = graphs.Thing("orange", "circle")
  blue = graphs.Thing("blue", "square", "small")
  graph = graphs.SceneGraph(
      (crosses, blue, orange), (graphs.Relation(2, "above", 1),)
  )
  assert grammar.prompt(graph) == (
      "an orange circle above a small blue square, two large red crosses"
  )


def test_words_covers_every_prompt(rng):
  known = {*grammar.words(), *grammar.ARTICLES}
  seen = set()
  for _ in range(300):
    seen |= set(grammar.prompt(_random_graph(rng)).replace(",", " ,").split())
  assert seen == known
  assert len(set(grammar.words())) == len(grammar.words())


@pytest.mark.parametrize(
    "text, named",
    [
        ("", "''"),
        ("a red", "'a red'"),
        ("a purple circle", "'purple'"),
        ("a red blob", "'blob'"),
        ("a red circles", "'circles'"),
        ("five red circles", "'five'"),
        ("a huge red circle", "'huge'"),
        ("a red circle beside a blue square", "beside"),
        ("a red circle left of", "'a red circle left of'"),
        (
            "a red circle above a blue square above a red square",
            "more than one relation",
        ),
        ("two red circles above a blue square", "count 2"),
        ("a small red circle, a red circle", "distinct"),
        ("a red circle above a red circle", "itself"),
    ],
)
def test_a_wrong_sentence_names_its_fault(text, named):
  with pytest.raises(ValueError, match=named):
    grammar.parse(text)


@pytest.mark.parametrize(
    "build, named",
    [
        (lambda: graphs.Thing("pink", "circle"), "colour is 'pink'"),
        (lambda: graphs.Thing("red", "star"), "shape is 'star'"),
        (lambda: graphs.Thing("red", "circle", "huge"), "size is 'huge'"),
        (lambda: graphs.Thing("red", "circle", None, 5), "count is 5"),
        (lambda: graphs.Relation(0, "beside", 1), "predicate is 'beside'"),
        (
            lambda: graphs.SceneGraph(
                (graphs.Thing("red", "circle"),),
                (graphs.Relation(0, "above", 1),),
            ),
            "names thing 1",
        ),
    ],
)
def test_a_wrong_graph_names_its_fault(build, named):
  with pytest.raises(ValueError, match=named):
    build()
