"""Pictures as PNG files: curves of metrics, galleries of images.

Everything drawn is in the arguments; the page around it is made by `report`.
"""

import functools
import io
import math
import os
import pathlib

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from spatialrl.io.workdir import naming

INK, MUTED, GRID = "#1f2328", "#59636e", "#e4e8ec"
GOOD, BAD, UNJUDGED = "#1a7f37", "#cf222e", "#8c959f"

_SERIES = ("#0969da", "#d4582f", "#1a7f37", "#8250df", "#9a6700", "#59636e")
_STYLE = {
  "font.family": "DejaVu Sans",
  "font.size": 9,
  "text.color": INK,
  "text.parse_math": False,
  "axes.edgecolor": UNJUDGED,
  "axes.grid": True,
  "axes.labelcolor": MUTED,
  "axes.prop_cycle": matplotlib.cycler(color=_SERIES),
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlelocation": "left",
  "axes.titlesize": 10,
  "axes.titleweight": "bold",
  "axes.titlepad": 8,
  "grid.color": GRID,
  "legend.fontsize": 8,
  "legend.frameon": False,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
}
_MANY = 60  # points from which a line is noise with a trend inside
_FEW = 30  # points up to which each is worth a dot

_WIDTH = 1440  # pixels of a gallery, about; pages show it at half of that
_TILE = 320  # pixels a side of an image in it, at most
_FRAME, _GAP, _MARGIN = 10, 16, 48
_FONT_SIZE, _LINE = 27, 36


def curves(path, rows, panels):
  """Draws metrics over steps as small multiples, two abreast.

  Metrics that only some rows have, as evaluations are, get a dot each; the
  others a line, which from 60 points on is pale beside its running mean over
  a twentieth of them.

  Args:
    path: PNG to write; its directory is created.
    rows: list of dicts with "step", as `metrics.read_metrics` returns them.
    panels: list of (title, dict from metric name to label). What no row has
      is left out, and so is a panel with nothing in it.
  """
  filled = []
  for title, names in panels:
    lines = {label: _points(rows, name) for name, label in names.items()}
    lines = {label: line for label, line in lines.items() if len(line[0])}
    if lines:
      filled.append((title, lines))
  wide = 2 if len(filled) > 1 else 1
  high = max(1, math.ceil(len(filled) / wide))
  with matplotlib.rc_context(_STYLE):
    size = (3.6 * max(wide, 1.5), 2.4 * high)
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    first, smoothed = None, False
    for place, (title, lines) in enumerate(filled, start=1):
      axes = figure.add_subplot(high, wide, place, sharex=first)
      first = first or axes
      smoothed |= _draw_panel(axes, title, lines, len(rows))
    if smoothed:
      note = "pale: every row; strong: running mean"
      figure.supxlabel(note, fontsize=8, color=MUTED)
    if not filled:
      figure.text(0.5, 0.5, "no metrics yet", ha="center", color=MUTED)
    png = io.BytesIO()
    figure.savefig(png, format="png")
  write_whole(path, png.getvalue())


def gallery(path, columns, captions, marks):
  """Draws a grid of images: a card per prompt, its images side by side.

  Args:
    path: PNG to write; its directory is created.
    columns: dict from title to u8[N, S, S, 3], for instance the images before
      and after training. Small ones are enlarged by whole pixels.
    captions: list of N str, wrapped above the images. The first line stands
      out, as the prompt; the lines after it say, say, what is wrong.
    marks: dict from title to N bools, True for a right image: a green or red
      frame and a tick or cross. Titles that are absent get a grey frame.

  Raises:
    ValueError: the lengths or the image sizes differ.
  """
  columns = {title: np.asarray(images) for title, images in columns.items()}
  _check_lengths(columns, captions, marks)
  cards = []
  for i, caption in enumerate(captions):
    images = [
      (title, images[i], marks[title][i] if title in marks else None)
      for title, images in columns.items()
    ]
    cards.append(_card(images, caption))
  png = io.BytesIO()
  _arrange(cards or [_note("no images")]).save(png, format="PNG")
  write_whole(path, png.getvalue())


def write_whole(path, data):
  """Writes bytes so that a reader sees the old file or the new, whole."""
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  with naming(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      temporary.write_bytes(data)
      os.replace(temporary, path)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise


def _points(rows, name):
  """(steps, values) of the rows that have the metric."""
  having = [row for row in rows if name in row]
  return [row["step"] for row in having], [row[name] for row in having]


def _draw_panel(axes, title, lines, rows):
  """Draws the lines of a panel; returns whether one of them was smoothed."""
  smoothed = False
  axes.set_title(title)
  axes.set_xlabel("step")
  axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
  axes.yaxis.set_major_locator(MaxNLocator(5))
  for label, (steps, values) in lines.items():
    few = len(steps) <= max(_FEW, rows // 2)
    smooth = not few and len(steps) >= _MANY
    (line,) = axes.plot(
      steps,
      values,
      label=label,
      linewidth=0.8 if smooth else 1.6,
      alpha=0.35 if smooth else 1.0,
      marker="o" if few else "",
      markersize=3.5,
    )
    if smooth:
      smoothed = True
      line.set_label(None)
      mean = _running_mean(values, len(values) // 20)
      axes.plot(steps, mean, color=line.get_color(), label=label)
  if [label.lower() for label in lines] != [title.lower()]:
    axes.legend(loc="best")
  return smoothed


def _running_mean(values, window):
  """Mean over an odd window around each value, cut off at the ends."""
  kernel = np.ones(window | 1)
  total = np.convolve(values, kernel, "same")
  return total / np.convolve(np.ones(len(values)), kernel, "same")


def _check_lengths(columns, captions, marks):
  shapes = {title: images.shape for title, images in columns.items()}
  for title, images in columns.items():
    if len(images) != len(captions):
      raise ValueError(
        f"column {title!r} has {len(images)} images and there are "
        f"{len(captions)} captions; each image needs one"
      )
    if images.dtype != np.uint8 and len(images):
      raise ValueError(
        f"images of column {title!r} are {images.dtype}; allowed is uint8"
      )
    if len(marks.get(title, captions)) != len(captions):
      raise ValueError(
        f"column {title!r} has {len(marks[title])} marks for "
        f"{len(captions)} images"
      )
  if len(set(shapes.values())) > 1:
    raise ValueError(f"columns differ in shape: {shapes}; allowed is one")


def _card(images, caption):
  """A caption over the framed images of (title, u8[S, S, 3], bool or None)."""
  tiles = [_tile(pixels) for _, pixels, _ in images]
  cell = max([_TILE, *(tile.width for tile in tiles)]) + 2 * _FRAME
  width = len(images) * (cell + _GAP) - _GAP
  lines = _wrap(caption, width)
  top = len(lines) * _LINE + _GAP // 2
  card = Image.new("RGB", (width, top + cell + _LINE + _GAP // 2), "white")
  draw = ImageDraw.Draw(card)
  for i, (text, colour) in enumerate(lines):
    draw.text((0, i * _LINE), text, fill=colour, font=_font())
  for i, ((title, _, right), tile) in enumerate(
    zip(images, tiles, strict=True)
  ):
    left = i * (cell + _GAP)
    colour, sign = _verdict(right)
    box = (left, top, left + cell - 1, top + cell - 1)
    draw.rectangle(box, fill="white", outline=colour, width=_FRAME)
    inset = (cell - tile.width) // 2
    card.paste(tile, (left + inset, top + inset))
    place = (left, top + cell + _GAP // 4)
    draw.text(place, f"{title} {sign}".strip(), fill=colour, font=_font())
  return card


def _tile(pixels):
  """The image in whole multiples of its pixels, or shrunk if it is larger."""
  image = Image.fromarray(pixels)
  factor = _TILE // image.width
  if factor:
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)
  return image.resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def _verdict(right):
  """(colour, what is written behind the title)."""
  if right is None:
    return UNJUDGED, ""
  return (GOOD, "✓") if right else (BAD, "✗")


def _note(text):
  note = Image.new("RGB", (_TILE, _LINE), "white")
  ImageDraw.Draw(note).text((0, 0), text, fill=MUTED, font=_font())
  return note


def _arrange(cards):
  """The cards in rows, each row as high as its highest card."""
  step = max(card.width for card in cards) + _MARGIN
  abreast = min(len(cards), max(1, (_WIDTH + _MARGIN) // step))
  rows = [cards[i : i + abreast] for i in range(0, len(cards), abreast)]
  heights = [max(card.height for card in row) + _MARGIN // 2 for row in rows]
  size = (abreast * step - _MARGIN, sum(heights) - _MARGIN // 2)
  sheet = Image.new("RGB", size, "white")
  top = 0
  for row, height in zip(rows, heights, strict=True):
    for i, card in enumerate(row):
      # Captions differ in length; the images of a row stand in line.
      down = height - _MARGIN // 2 - card.height
      sheet.paste(card, (i * step, top + down))
    top += height
  return sheet


def _wrap(text, width):
  """Lines no wider than `width` pixels where words allow, and their colours."""
  lines = []
  for number, paragraph in enumerate(text.split("\n")):
    words = paragraph.split()
    while words:
      count = len(words)
      while count > 1 and _font().getlength(" ".join(words[:count])) > width:
        count -= 1
      lines.append((" ".join(words[:count]), MUTED if number else INK))
      words = words[count:]
  return lines


@functools.cache
def _font():
  fonts = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
  return ImageFont.truetype(fonts / "DejaVuSans.ttf", _FONT_SIZE)
