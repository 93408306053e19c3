"""Sentences of the embedded world: prompt from graph and graph from prompt.

    prompt  = clause { ", " clause }
    clause  = thing [ predicate thing ]
    thing   = ("a" | "an" | number) [size] colour shape["s"]
"""

import re

from spatialrl.scenes import graph as graphs

NUMBERS = {2: "two", 3: "three", 4: "four"}
_PLURAL = {shape: shape + "s" for shape in graphs.SHAPES} | {
    "cross": "crosses"
}
_COUNTS = {word: number for number, word in NUMBERS.items()}
_SINGULAR = {plural: shape for shape, plural in _PLURAL.items()}
_PREDICATE = re.compile(
    " (" + "|".join(sorted(graphs.PREDICATES, key=len, reverse=True)) + ") "
)
ARTICLES = ("a", "an")
# Parts of speech, for attention to the words that carry the content. "of" is
# the one function word that is a token.
WORD_KINDS = {
    "nouns": (*graphs.SHAPES, *_PLURAL.values()),
    "colours": tuple(graphs.COLOURS),
    "relations": tuple(
        dict.fromkeys(
            w for p in graphs.PREDICATES for w in p.split() if w != "of"
        )
    ),
    "function": ("of",),
}


def words():
  """Every word a prompt may contain, in a fixed order, articles left out."""
  predicates = [w for p in graphs.PREDICATES for w in p.split()]
  return tuple(
      dict.fromkeys([
          ",",
          *graphs.COLOURS,
          *graphs.SHAPES,
          *_PLURAL.values(),
          *graphs.SIZES,
          *NUMBERS.values(),
          *predicates,
      ])
  )


def prompt(graph):
  """Writes a graph as a sentence.

  Args:
    graph: the scene; its things are mentioned relation by relation, those in
      no relation at the end.

  Returns:
    str; `parse` gives back `graph.in_mention_order()`.
  """
  related = set()
  clauses = []
  for relation in graph.relations:
    related |= {relation.subject, relation.object}
    subject = _phrase(graph.things[relation.subject])
    target = _phrase(graph.things[relation.object])
    clauses.append(f"{subject} {relation.predicate} {target}")
  alone = [t for i, t in enumerate(graph.things) if i not in related]
  return ", ".join(clauses + [_phrase(thing) for thing in alone])


def parse(text):
  """Reads a sentence back into a graph.

  Args:
    text: str of the grammar above.

  Returns:
    SceneGraph, things in order of first mention.

  Raises:
    ValueError: naming the clause or word that is not of the grammar.
  """
  things, relations = [], []

  def mention(phrase):
    thing = _read_thing(phrase)
    if thing not in things:
      things.append(thing)
    return things.index(thing)

  for clause in text.split(", "):
    parts = _PREDICATE.split(clause)
    if len(parts) == 1:
      mention(parts[0])
    elif len(parts) == 3:
      subject, target = mention(parts[0]), mention(parts[2])
      relations.append(graphs.Relation(subject, parts[1], target))
    else:
      raise ValueError(f"clause {clause!r} has more than one relation.")
  return graphs.SceneGraph(tuple(things), tuple(relations))


def _phrase(thing):
  name = f"{thing.size} {thing.label}" if thing.size else thing.label
  if thing.count == 1:
    return ("an " if name[0] in "aeiou" else "a ") + name
  plural = name.removesuffix(thing.shape) + _PLURAL[thing.shape]
  return f"{NUMBERS[thing.count]} {plural}"


def _read_thing(phrase):
  found = phrase.split()
  if len(found) not in (3, 4):
    raise ValueError(
        f"{phrase!r} is not of the form 'a [size] colour shape'."
    )
  article, *middle, shape = found
  *size, colour = middle
  if article in _COUNTS:
    count, shape = _COUNTS[article], _SINGULAR.get(shape, shape)
  elif article in ARTICLES:
    count = 1
  else:
    raise ValueError(
        f"{phrase!r} starts with {article!r}; allowed are"
        f" {[*ARTICLES, *_COUNTS]}."
    )
  return graphs.Thing(colour, shape, size[0] if size else None, count)
