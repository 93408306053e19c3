"""Scenes, pairs and prompts: reproducible, true to their text, split-clean."""

import numpy as np
import pytest

from spatialrl.data import positions, scenes
from spatialrl.evals import relations
from spatialrl.scenes import grammar, perturb, render, sample
from spatialrl.scenes import graph as graphs
from spatialrl.scenes import layout as layouts
from spatialrl.scenes.holds import clearance

SPLITS = [(False, (1, 2, 3, 4, 5, 6)), (True, (1, 2, 3))]


def captioned(step=0, batch=32, **changed):
  settings = {"size": 16, "relations": (1, 2, 3), "wrong_share": 0.5}
  return scenes.captioned_scenes(5, step, batch, **settings | changed)


def pairs(step=0, batch=32, **changed):
  settings = {"size": 16, "relations": (1, 2, 3)}
  return scenes.reward_pairs(5, step, batch, **settings | changed)


def violated(prompt, image):
  """Relations of a prompt that the centres of the colours speak against."""
  graph = grammar.parse(prompt)
  palette = np.array([render.BACKGROUND, *graphs.COLOURS.values()]) * 255
  distance = ((image[..., None, :] - palette) ** 2).sum(-1)
  nearest, close = distance.argmin(-1), distance.min(-1) < 40
  centre = []
  for thing in graph.things:
    colour = 1 + list(graphs.COLOURS).index(thing.colour)
    centre.append(np.argwhere((nearest == colour) & close).mean(0)[::-1])
  sign = {"left of": (0, 1), "right of": (0, -1),
          "above": (1, 1), "below": (1, -1)}
  wrong = 0
  for relation in graph.relations:
    axis, side = sign[relation.predicate]
    offset = centre[relation.object][axis] - centre[relation.subject][axis]
    wrong += side * offset <= 0
  return wrong


def one_colour_each(prompt):
  colours = [thing.colour for thing in grammar.parse(prompt).things]
  return len(set(colours)) == len(colours)


def in_split(prompt, held_out):
  triples = grammar.parse(prompt).triples()
  return all(graphs.is_held_out(a, b) == held_out for a, _, b in triples)


def test_render_batch_draws_the_pixels_of_render(rng):
  drawn = sample.sample_scenes(rng, 40, relations=(1, 2, 4))
  # Where one thing is inside another, the order of drawing shows.
  drawn += sample.sample_scenes(
      rng, 10, relations=(1,), predicates=("inside",)
  )
  counted = graphs.SceneGraph((
      graphs.Thing("red", "cross", "small", 3),
      graphs.Thing("white", "triangle", "large"),
  ))
  drawn.append((counted, layouts.place(rng, counted)))
  for size in (16, 33):
    images = render.render_batch(*zip(*drawn, strict=True), size)
    for image, (graph, layout) in zip(images, drawn, strict=True):
      np.testing.assert_array_equal(image, render.render(graph, layout, size))


def test_the_same_seed_and_step_give_the_same_scenes():
  first, again, other = captioned(), captioned(), captioned(step=1)
  np.testing.assert_array_equal(first[0], again[0])
  assert first[1:] == again[1:]
  assert first[1] != other[1]


def test_the_same_seed_and_step_give_the_same_pairs():
  first, again, other = pairs(), pairs(), pairs(step=1)
  for field in ("perfect", "perturbed", "contradicted"):
    np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
  assert first.prompts == again.prompts != other.prompts
  assert first.perturbed_prompts == again.perturbed_prompts


def test_pictures_show_the_graphs():
  images, _, shown = captioned(batch=64, size=48, relations=(1, 2, 3, 5))
  told = [grammar.prompt(graph) for graph in shown]
  checked = [
      violated(prompt, image)
      for prompt, image in zip(told, images, strict=True)
      if one_colour_each(prompt)
  ]
  assert len(checked) > 20
  assert not any(checked)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_stated_share_of_captions_contradicts_one_relation(share):
  _, captions, shown = captioned(batch=600, wrong_share=share)
  wrong = 0
  for caption, graph in zip(captions, shown, strict=True):
    if caption == grammar.prompt(graph):
      continue
    wrong += 1
    told = grammar.parse(caption)
    flipped = {
        (told_a, p, told_b)
        for relation in graph.relations
        for told_a, p, told_b in [
            graphs.SceneGraph(graph.things, (relation.flipped(),))
            .triples().pop()
        ]
    }
    assert len(flipped & told.triples()) == 1
  assert abs(wrong / 600 - share) <= 4 * np.sqrt(share * (1 - share) / 600)


@pytest.mark.parametrize("held_out,relations", SPLITS)
def test_no_text_relates_labels_of_the_other_split(held_out, relations):
  _, captions, _ = captioned(
      batch=300, relations=relations, wrong_share=1.0, held_out=held_out
  )
  made = pairs(batch=100, relations=relations, held_out=held_out)
  listed = scenes.prompts(5, 300, relations=relations, held_out=held_out)
  for prompt in (
      *captions, *made.prompts, *made.perturbed_prompts, *listed
  ):
    assert in_split(prompt, held_out)


@pytest.mark.parametrize("perturbed", [(1, 1), (2, 3)])
@pytest.mark.parametrize("held_out", [False, True])
def test_only_the_perfect_image_satisfies_the_prompt(perturbed, held_out):
  made = pairs(
      batch=64, size=48, relations=(2, 3), perturbed=perturbed,
      held_out=held_out,
  )
  checked = 0
  for i, prompt in enumerate(made.prompts):
    assert perturbed[0] <= made.contradicted[i] <= perturbed[1]
    if one_colour_each(prompt):
      checked += 1
      assert violated(prompt, made.perfect[i]) == 0
      assert violated(made.perturbed_prompts[i], made.perturbed[i]) == 0
      assert violated(prompt, made.perturbed[i]) >= made.contradicted[i]
  assert checked > 15


def test_the_boxes_of_a_pair_are_those_of_what_it_is_about():
  made = scenes.reward_pairs(
      3, 0, 40, size=64, relations=(1, 3), perturbed=(1, 1)
  )
  for i, prompt in enumerate(made.prompts):
    graph = grammar.parse(prompt)
    told = grammar.parse(made.perturbed_prompts[i])
    place = [graph.things.index(thing) for thing in told.things]
    other = graphs.SceneGraph(graph.things, tuple(
        graphs.Relation(place[r.subject], r.predicate, place[r.object])
        for r in told.relations
    ))
    about = perturb.contradicted_things(graph, other)
    assert about and about <= set(range(len(graph.things)))
    for image, boxes in (
        (made.perfect[i], made.perfect_boxes[i]),
        (made.perturbed[i], made.perturbed_boxes[i]),
    ):
      assert len(boxes) == sum(graph.things[k].count for k in about)
      covered = layouts.coverage(boxes, 64) > 0
      # Well above the rim that anti-aliasing leaves around a box.
      drawn = np.abs(image - image[0, 0].astype(int)).max(-1) > 60
      if len(about) == len(graph.things):
        assert not (drawn & ~covered).any()
      assert drawn[covered].mean() > 0.3
  things = scenes.thing_pairs(3, 0, 20, size=32, relations=(1,))
  for i, boxes in enumerate(things.perfect_boxes):
    changed = (things.perfect[i] != things.perturbed[i]).any(-1)
    assert not (changed & (layouts.coverage(boxes, 32) == 0)).any()


def test_the_images_of_a_thing_pair_differ_in_one_thing_only():
  pairs = scenes.thing_pairs(5, 0, 48, size=32, relations=(1, 2, 3))
  changed_colour = 0
  for i, (prompt, other) in enumerate(
      zip(pairs.prompts, pairs.perturbed_prompts, strict=True)
  ):
    before, after = grammar.parse(prompt), grammar.parse(other)
    assert before.relations == after.relations
    assert in_split(prompt, False) and in_split(other, False)
    unlike = [
        (a, b) for a, b in zip(before.things, after.things, strict=True)
        if a != b
    ]
    assert len(unlike) == 1
    a, b = unlike[0]
    assert (a.colour == b.colour) != (a.shape == b.shape)
    index = before.things.index(a)
    related = sum(index in (r.subject, r.object) for r in before.relations)
    assert pairs.contradicted[i] == related
    changed_colour += a.colour != b.colour
    # The picture changes there and nowhere else: a thing is 0.34 wide at most.
    moved = np.argwhere(
        (pairs.perfect[i] != pairs.perturbed[i]).any(-1)
    )
    assert 0 < np.ptp(moved, axis=0).max() <= 0.34 * 32 + 1
  assert 12 < changed_colour < 36
  again = scenes.thing_pairs(5, 0, 48, size=32, relations=(1, 2, 3))
  np.testing.assert_array_equal(again.perturbed, pairs.perturbed)


def test_pairs_state_each_number_of_relations_equally_often():
  made = pairs(batch=600, relations=(1, 3, 6))
  stated = [len(grammar.parse(prompt).relations) for prompt in made.prompts]
  counts = np.bincount(stated, minlength=7)[[1, 3, 6]]
  assert counts.sum() == 600
  assert abs(counts - 200).max() < 50


def test_either_image_of_a_pair_may_be_the_sampled_one(monkeypatch):
  placed, sides = [], []
  choose, draw = positions.choose, render.render_batch

  def remember(*arguments):
    placed.append(choose(*arguments))
    return placed[-1]

  def watch(shown, layout, size):
    sides.append([any(a is b for b in placed) for a in layout])
    return draw(shown, layout, size)

  monkeypatch.setattr(positions, "choose", remember)
  monkeypatch.setattr(render, "render_batch", watch)
  pairs(batch=200)
  perfect, perturbed = np.array(sides)
  np.testing.assert_array_equal(perfect, ~perturbed)
  assert 70 < perfect.sum() < 130


@pytest.mark.parametrize("things,relations", [(2, 1), (3, 3), (4, 5)])
def test_chosen_positions_satisfy_the_graph_by_the_margin(
    rng, things, relations
):
  pool = positions.draw(rng, things)
  found = 0
  for graph, _ in sample.sample_scenes(rng, 20, relations=(relations,)):
    layout = positions.choose(rng, pool, graph)
    if layout is None:
      continue
    found += 1
    boxes = layout.boxes
    assert boxes.min() > -1e-6 and boxes.max() < 1 + 1e-6
    assert layouts.separate(layout.centre[None], layout.radius[None])
    for r in graph.relations:
      clear = clearance(r.predicate, boxes[r.subject], boxes[r.object])
      assert clear > layouts.MARGIN[r.predicate] - 1e-5
  assert found > 15


def test_a_graph_without_layout_gets_none(rng):
  labels = [("red", "cross"), ("blue", "cross"), ("green", "cross")]
  circle = graphs.SceneGraph(
      tuple(graphs.Thing(*label) for label in labels),
      tuple(graphs.Relation(i, "above", (i + 1) % 3) for i in range(3)),
  )
  assert positions.choose(rng, positions.draw(rng, 3), circle) is None


def test_prompts_are_distinct_and_a_longer_list_begins_with_the_shorter():
  made = scenes.prompts(1, 512, relations=(1,), held_out=True)
  assert len(set(made)) == len(made) == 512
  assert made[:100] == scenes.prompts(1, 100, relations=(1,), held_out=True)
  assert made != scenes.prompts(2, 512, relations=(1,), held_out=True)
  assert not set(made) & set(scenes.prompts(1, 512, relations=(1,)))


def test_asking_for_more_prompts_than_there_are_is_an_error():
  # 88 held-out pairs of labels, two orders, four directions.
  with pytest.raises(ValueError, match="only 704 distinct prompts"):
    scenes.prompts(0, 705, relations=(1,), held_out=True)


@pytest.mark.parametrize("call,message", [
    (lambda: captioned(wrong_share=1.5), "wrong_share is 1.5"),
    (lambda: captioned(relations=(1, 7)), "allowed are 1 to 6"),
    (lambda: captioned(relations=()), "allowed are 1 to 6"),
    (lambda: captioned(relations=(4,), held_out=True), "allowed are 1 to 3"),
    (lambda: pairs(relations=(4,), held_out=True), "allowed are 1 to 3"),
    (lambda: pairs(relations=(1, 2), perturbed=(2, 3)), "perturbed is"),
    (lambda: pairs(perturbed=(0, 1)), "perturbed is"),
    (lambda: pairs(relations=(3,), perturbed=(3, 2)), "perturbed is"),
])
def test_mistakes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_contradicted_counts_relations_of_the_prompt():
  made = pairs(relations=(3,), perturbed=(1, 3))
  for i in range(32):
    graph = grammar.parse(made.prompts[i])
    other = grammar.parse(made.perturbed_prompts[i])
    order = [t.label for t in other.things]
    place = {old: order.index(t.label) for old, t in enumerate(graph.things)}
    aligned = graphs.SceneGraph(
        other.things,
        tuple(
            graphs.Relation(place[r.subject], r.predicate, place[r.object])
            for r in graph.relations
        ),
    )
    assert perturb.contradicted(aligned, other) == made.contradicted[i]
  assert len(set(made.contradicted.tolist())) > 1


def test_renders_satisfy_their_prompts_and_the_flips_do_not():
  prompts = scenes.prompts(5, 12, relations=(1, 2))
  images, flips = scenes.renders(5, 3, prompts, size=32)
  for texts, right in ((prompts, True), (flips, False)):
    judged = relations.verdicts(texts, images)
    assert all(v.all_relations == right for _, _, v in judged)
    assert all(v.object_recall == 1 for _, _, v in judged)
  again, _ = scenes.renders(5, 3, prompts, size=32)
  np.testing.assert_array_equal(images, again)
  other, _ = scenes.renders(5, 4, prompts, size=32)
  assert (images != other).any((1, 2, 3)).all()


def test_prompts_that_few_layouts_fit_are_rendered():
  prompts = scenes.prompts(0, 30, relations=(4, 6))
  images, _ = scenes.renders(0, 0, prompts, size=16)
  assert len(images) == 30


def test_a_prompt_without_a_layout_is_named():
  thing = "a red circle", "a blue square"
  prompt = "{0} left of {1}, {1} left of {0}".format(*thing)
  with pytest.raises(ValueError, match="red circle left of a blue"):
    scenes.renders(5, 3, [prompt], size=32)
