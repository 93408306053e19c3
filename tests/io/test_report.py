"""Reports: all of what was given is on the page, and nothing it could run."""

import html.parser

import numpy as np
import pytest
from PIL import Image, ImageColor

from spatialrl.io import plots, report

VOID = ("meta", "img")


class Page(html.parser.HTMLParser):
  """The tags, the texts and the cells of a page; refuses unbalanced tags."""

  def __init__(self, text):
    super().__init__()
    self.texts, self.tags, self.images, self.rows = [], [], [], []
    self._open = []
    self.feed(text)
    self.close()
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag == "img":
      self.images.append(dict(attrs))
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")
    if tag not in VOID:
      self._open.append(tag)

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open and self._open[-1] in ("td", "th"):
      self.rows[-1][-1] += data
    if data.strip() and self._open[-1] != "style":
      self.texts.append(data.strip())


@pytest.fixture
def figures(monkeypatch):
  """The figures of `curves`, which writes nothing."""
  seen = []
  monkeypatch.setattr(
    plots.Figure, "savefig", lambda figure, file, **_: seen.append(figure)
  )
  return seen


def _write(workdir, **changes):
  arguments = {"title": "a run", "summary": {}, "settings": {}, "sections": []}
  report.write_report(workdir, **(arguments | changes))
  return Page((workdir / "report.html").read_text(encoding="utf-8"))


def _plain(size, colour, count=1):
  return np.full((count, size, size, 3), colour, np.uint8)


def _pixels(path):
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB"))


def _area(pixels, colour):
  return int((pixels == np.array(colour)).all(-1).sum())


def test_summary_shows_base_final_and_change(tmp_path):
  page = _write(
    tmp_path,
    summary={
      "all relations": (0.3125, np.float32(0.875)),
      "images": (128, 2048),
      "loss": (1234.5, 2e-5),
      "took": (None, "9 min"),
    },
  )
  assert page.rows == [
    ["", "base", "final", "change"],
    ["all relations", "0.312", "0.875", "+0.562"],
    ["images", "128", "2,048", "+1,920"],
    ["loss", "1.23e+03", "2e-05", "-1.23e+03"],
    ["took", "–", "9 min", "–"],
  ]


def test_what_is_not_finite_is_unknown(tmp_path):
  nan, inf = float("nan"), np.float64("inf")
  page = _write(tmp_path, summary={"a": (nan, 1.0), "b": (0.5, inf)})
  assert page.rows[1:] == [
    ["a", "–", "1.000", "–"],
    ["b", "0.500", "–", "–"],
  ]


def test_a_summary_without_a_base_has_one_column(tmp_path):
  page = _write(tmp_path, summary={"sg iou": (None, 0.5)})
  assert page.rows == [["", "value"], ["sg iou", "0.500"]]


def test_sections_come_in_order_with_text_picture_and_table(tmp_path):
  name = "before & after.png"
  path = tmp_path / report.FOLDER / name
  plots.gallery(path, {"base": _plain(8, 9)}, ["a prompt"], {})
  table = [("split", "accuracy"), ("one", 0.98), ("three", None)]
  page = _write(
    tmp_path,
    title="Quickstart",
    summary={"reward": (0.0, 1.0)},
    settings={"seed": 0},
    sections=[
      report.Section("Grid", "First.\n\nSecond.", image=name),
      report.Section("Pairs", table=table),
    ],
  )
  heads = ["Summary", "Grid", "Pairs", "Settings (1)"]
  assert [text for text in page.texts if text in heads] == heads
  assert page.texts[:2] == ["Quickstart"] * 2  # Of the window and the page.
  assert {"First.", "Second."} <= set(page.texts)
  assert page.rows[2:5] == [
    ["split", "accuracy"],
    ["one", "0.980"],
    ["three", "–"],
  ]
  (shown,) = page.images
  assert shown["src"] == "report/before%20%26%20after.png"
  assert shown["alt"] == "Grid"
  size = int(shown["height"]), int(shown["width"])
  assert size == _pixels(path).shape[:2]


def test_settings_are_dotted_names_with_json_values(tmp_path):
  page = _write(
    tmp_path,
    settings={"steps": 9, "lora": {"targets": ("q", "k"), "rank": 0}, "x": {}},
  )
  assert page.rows == [
    ["lora.rank", "0"],
    ["lora.targets", '["q", "k"]'],
    ["steps", "9"],
    ["x", "{}"],
  ]


def test_everything_is_escaped(tmp_path):
  evil = '<script src="x">&amp;{style}</script>'
  path = tmp_path / report.FOLDER / "a.png"
  plots.gallery(path, {}, [], {})
  page = _write(
    tmp_path,
    title=evil,
    summary={evil: (evil, evil)},
    settings={evil: evil},
    sections=[report.Section(evil, evil, "a.png", [(evil,), (evil,)])],
  )
  assert "script" not in page.tags
  quoted = evil.replace('"', '\\"')  # As JSON has it.
  assert page.texts.count(evil) == 10
  assert page.texts.count(f'"{quoted}"') == 1
  assert page.images[0]["alt"] == evil


def test_the_page_needs_no_network(tmp_path):
  page = _write(tmp_path, summary={"a": (0, 1)})
  text = (tmp_path / "report.html").read_text()
  assert "//" not in text
  assert "@import" not in text
  assert not {"script", "link", "iframe"} & set(page.tags)
  assert 'name="viewport"' in text


def test_a_picture_that_is_not_there_is_named(tmp_path):
  section = report.Section("Failures", image="failures.png")
  with pytest.raises(ValueError, match=r"'Failures' shows 'failures\.png'"):
    _write(tmp_path, sections=[section])
  assert not (tmp_path / "report.html").exists()


def test_a_report_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
  _write(tmp_path, title="old")
  before = (tmp_path / "report.html").read_bytes()

  def full(*_):
    raise OSError("no space left")

  monkeypatch.setattr(plots.os, "replace", full)
  with pytest.raises(OSError, match="no space left"):
    _write(tmp_path, title="new")
  assert (tmp_path / "report.html").read_bytes() == before
  assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("rows", [[], [{"step": 3, "loss": 0.5}]])
def test_curves_of_hardly_any_rows_are_a_picture(tmp_path, rows):
  path = tmp_path / "report" / "curves.png"
  name = r"$\frac$"  # No formula, so it must not be read as one.
  plots.curves(path, rows, [(name, {"loss": name + "_"})])
  assert _pixels(path).shape == (480, 1080, 3)
  assert len(np.unique(_pixels(path))) > 2


def test_curves_leave_out_what_no_row_has(tmp_path, figures):
  rows = [{"step": step, "loss": 1.0, "oracle": 0.5} for step in range(3)]
  panels = [
    ("Loss", {"loss": "loss"}),
    ("Ratio", {"ratio_max": "largest"}),
    ("Oracle", {"claimed": "claimed", "oracle": "measured"}),
  ]
  plots.curves(tmp_path / "curves.png", rows, panels)
  loss, oracle = figures[0].axes
  assert [axes.get_title(loc="left") for axes in (loss, oracle)] == [
    "Loss",
    "Oracle",
  ]
  assert loss.get_legend() is None  # It would repeat the title.
  (name,) = oracle.get_legend().get_texts()
  assert name.get_text() == "measured"
  assert [int(inches * 200) for inches in figures[0].get_size_inches()] == [
    1440,
    480,
  ]


def test_evaluations_are_dots_and_long_lines_have_a_running_mean(
  tmp_path, figures
):
  rows = [{"step": step, "reward": float(step % 2)} for step in range(1, 101)]
  for row in rows[9::10]:
    row["oracle"] = row["step"] / 100
  panels = [("Oracle", {"oracle": "share"}), ("Reward", {"reward": "mean"})]
  plots.curves(tmp_path / "curves.png", rows, panels)
  oracle, reward = figures[0].axes
  (line,) = oracle.lines
  assert line.get_marker() == "o"
  np.testing.assert_array_equal(line.get_xdata(), range(10, 101, 10))
  np.testing.assert_allclose(line.get_ydata(), np.arange(10, 101, 10) / 100)
  raw, mean = reward.lines
  assert raw.get_marker() == ""
  np.testing.assert_array_equal(raw.get_ydata(), [1.0, 0.0] * 50)
  # Five points around each, fewer at the ends.
  np.testing.assert_allclose(mean.get_ydata()[:3], [2 / 3, 2 / 4, 3 / 5])
  assert len(reward.get_legend().get_texts()) == 1
  assert oracle.get_xlim() == reward.get_xlim()


def test_curves_leave_the_settings_of_matplotlib_alone(tmp_path, figures):
  with plots.matplotlib.rc_context({"font.size": 33.0}):
    before = dict(plots.matplotlib.rcParams)
    plots.curves(tmp_path / "curves.png", [], [])
    assert dict(plots.matplotlib.rcParams) == before


def test_gallery_enlarges_whole_pixels(tmp_path):
  images = _plain(32, (1, 2, 3))
  images[0, 5, 7] = (200, 0, 201)
  plots.gallery(tmp_path / "g.png", {"base": images}, ["a red circle"], {})
  pixels = _pixels(tmp_path / "g.png")
  assert _area(pixels, (200, 0, 201)) == 10 * 10
  assert _area(pixels, (1, 2, 3)) == 320 * 320 - 100
  rows, columns = np.nonzero((pixels == (200, 0, 201)).all(-1))
  base = np.argwhere((pixels == (1, 2, 3)).all(-1)).min(0)
  assert (rows.min() - base[0], columns.min() - base[1]) == (50, 70)


@pytest.mark.parametrize(("size", "side"), [(300, 300), (640, 320)])
def test_gallery_keeps_large_images_readable(tmp_path, size, side):
  plots.gallery(tmp_path / "g.png", {"a": _plain(size, 7)}, ["x"], {})
  assert _area(_pixels(tmp_path / "g.png"), (7, 7, 7)) == side * side


def test_gallery_frames_are_the_verdicts(tmp_path):
  columns = {"base": _plain(8, 5, 2), "trained": _plain(8, 6, 2)}
  marks = {"base": [False, True], "trained": [True, True]}
  plots.gallery(tmp_path / "g.png", columns, ["", ""], marks)
  pixels = _pixels(tmp_path / "g.png")
  good, bad, unjudged = (
    ImageColor.getrgb(colour)
    for colour in (plots.GOOD, plots.BAD, plots.UNJUDGED)
  )
  frame = 340 * 340 - 320 * 320
  # Titles and ticks have the same colour.
  assert frame <= _area(pixels, bad) < 1.1 * frame
  assert 3 * frame <= _area(pixels, good) < 3.3 * frame
  assert _area(pixels, unjudged) == 0
  left, right = pixels[:, :350], pixels[:, 350:700]
  assert _area(left, bad) >= frame and _area(left, good) == 0
  assert _area(right, good) >= frame and _area(right, bad) == 0

  plots.gallery(tmp_path / "g.png", columns, ["", ""], {"base": [True, True]})
  assert _area(_pixels(tmp_path / "g.png"), unjudged) >= 2 * frame


def test_gallery_has_room_for_every_card_and_its_caption(tmp_path):
  def height(count, caption):
    columns = {"base": _plain(8, 5, count), "trained": _plain(8, 6, count)}
    plots.gallery(tmp_path / "g.png", columns, [caption] * count, {})
    pixels = _pixels(tmp_path / "g.png")
    assert _area(pixels, (5, 5, 5)) == count * 320 * 320
    # Two cards abreast, a single one alone.
    assert pixels.shape[1] == (696 if count == 1 else 2 * 696 + 48)
    return pixels.shape[0]

  clause = "a red circle left of a blue square, "
  assert height(1, clause) < height(1, clause * 3)
  assert height(1, clause) < height(1, clause + "\nno red circle")
  assert height(2, clause) == height(1, clause) < height(3, clause)


def test_images_of_a_row_stand_in_line(tmp_path):
  columns = {"trained": np.concatenate([_plain(8, 5), _plain(8, 6)])}
  captions = ["a red circle", "a red circle\nit is missing\nand more"]
  plots.gallery(tmp_path / "g.png", columns, captions, {})
  pixels = _pixels(tmp_path / "g.png")
  first, second = (
    np.argwhere((pixels == colour).all(-1)).min(0) for colour in (5, 6)
  )
  assert first[0] == second[0] and first[1] < second[1]


def test_gallery_of_nothing_is_a_picture(tmp_path):
  for columns in ({}, {"trained": _plain(8, 5, 0)}, {"trained": []}):
    plots.gallery(tmp_path / "g.png", columns, [], {"trained": []})
    pixels = _pixels(tmp_path / "g.png")
    assert len(np.unique(pixels)) > 2  # It says so.


def test_gallery_refuses_what_does_not_fit(tmp_path):
  path, images = tmp_path / "g.png", _plain(8, 5, 2)
  with pytest.raises(ValueError, match="'a' has 2 images and there are 1 cap"):
    plots.gallery(path, {"a": images}, ["x"], {})
  with pytest.raises(ValueError, match="'a' has 3 marks for 2 images"):
    plots.gallery(path, {"a": images}, ["x", "y"], {"a": [True] * 3})
  with pytest.raises(ValueError, match="'a' are float64; allowed is uint8"):
    plots.gallery(path, {"a": images / 255}, ["x", "y"], {})
  with pytest.raises(ValueError, match="columns differ in shape"):
    plots.gallery(path, {"a": images, "b": _plain(16, 5, 2)}, ["x", "y"], {})
  assert not path.exists()
