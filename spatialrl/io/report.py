"""The page of a run: `report.html`, with its pictures in the folder report/.

One file that needs no network and no script, made of its arguments alone. The
pictures are drawn by `plots`.
"""

import dataclasses
import html
import json
import math
import numbers
import pathlib
import urllib.parse

from PIL import Image

from spatialrl.io.plots import write_whole

FOLDER = "report"  # of the pictures, inside the workdir
_FILE = "report.html"
_UNKNOWN = "–"
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""
_STYLE = """\
:root { color-scheme: light; --ink: #1f2328; --muted: #59636e;
  --line: #e4e8ec; --card: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f8fa; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 800px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 8px 0 20px; }
h2 { font-size: 1.1rem; margin: 0 0 8px; }
section { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 18px 20px; margin: 0 0 16px; }
p { margin: 0 0 12px; max-width: 66ch; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
figure { margin: 8px 0 0; }
figure img { display: block; height: auto; width: 100%; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px 6px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; }
.number { text-align: right; white-space: nowrap; }
.change { font-weight: 600; }
tr:last-child td { border-bottom: 0; }
summary { cursor: pointer; font-weight: 600; }
details table { margin-top: 10px; font-size: .85rem; }
details td { font-family: ui-monospace, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
@media (max-width: 560px) {
  main { padding: 12px 8px 40px; }
  section { padding: 14px 12px; }
}
"""


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page; what is None is left out.

  Attributes:
    title: str, its heading.
    text: str, plain; an empty line separates paragraphs.
    image: name of a PNG in the folder report/.
    table: rows of cells, numbers or str, the first row being the header.
  """

  title: str
  text: str = ""
  image: str | None = None
  table: list | None = None


def write_report(workdir, *, title, summary, settings, sections):
  """Writes `report.html`: the summary, the sections in order, the settings.

  Args:
    workdir: existing directory of the run.
    title: str, the heading of the page.
    summary: dict from name to (base, final), each a number or str; None and
      numbers that are not finite show as unknown. When no base is known the
      page has a single column of values.
    settings: nested dict, the config of the run; shown folded.
    sections: list of Section.

  Raises:
    ValueError: a section shows a picture that is not there.
  """
  workdir = pathlib.Path(workdir)
  parts = [_section("Summary", _summary_table(summary))] if summary else []
  parts += [_render(section, workdir) for section in sections]
  if settings:
    parts.append(_settings(settings))
  page = _PAGE.format(
    title=html.escape(title), style=_STYLE, body="\n".join(parts)
  )
  write_whole(workdir / _FILE, page.encode())


def _render(section, workdir):
  paragraphs = section.text.split("\n\n")
  parts = [f"<p>{html.escape(text)}</p>" for text in paragraphs if text.strip()]
  if section.image is not None:
    parts.append(_figure(section, workdir))
  if section.table:
    header, *rows = section.table
    parts.append(_table(header, [map(_cell, row) for row in rows]))
  return _section(section.title, "\n".join(parts))


def _section(title, body):
  return f"<section>\n<h2>{html.escape(title)}</h2>\n{body}\n</section>"


def _figure(section, workdir):
  """The picture, which on a narrow screen is swiped rather than shrunk."""
  path = workdir / FOLDER / section.image
  if not path.is_file():
    raise ValueError(
      f"section {section.title!r} shows {section.image!r}, which is not in "
      f"{path.parent}; draw it there first"
    )
  with Image.open(path) as image:
    width, height = image.size
  shown = width // 2  # Drawn for screens with two pixels a point.
  source = urllib.parse.quote(f"{FOLDER}/{section.image}")
  return (
    f'<figure class="scroll"><a href="{source}"><img src="{source}" '
    f'alt="{html.escape(section.title)}" width="{width}" height="{height}" '
    f'style="max-width:{shown}px;min-width:{min(shown, 560)}px"></a></figure>'
  )


def _summary_table(summary):
  if all(_is_unknown(base) for base, _ in summary.values()):
    rows = [(_cell(name), _cell(final)) for name, (_, final) in summary.items()]
    return _table(("", "value"), rows)
  rows = [
    (_cell(name), _cell(base), _cell(final), _change(base, final))
    for name, (base, final) in summary.items()
  ]
  return _table(("", "base", "final", "change"), rows)


def _change(base, final):
  known = _is_number(base) and _is_number(final)
  text = _number(final - base, "+") if known else _UNKNOWN
  return f'<td class="number change">{text}</td>'


def _table(header, rows):
  """A table of ready cells; headings stand where the numbers below them do."""
  rows = [list(row) for row in rows]
  lines = ["<tr>" + "".join(row) + "</tr>" for row in rows]
  heads = "".join(
    f"<th{_align(rows, i)}>{html.escape(str(name))}</th>"
    for i, name in enumerate(header)
  )
  return "\n".join(
    [
      '<div class="scroll"><table>',
      f"<tr>{heads}</tr>",
      *lines,
      "</table></div>",
    ]
  )


def _align(rows, i):
  numeric = any('class="number' in row[i] for row in rows if i < len(row))
  return ' class="number"' if numeric else ""


def _cell(value):
  if _is_unknown(value):
    return f'<td class="number">{_UNKNOWN}</td>'
  if _is_number(value):
    return f'<td class="number">{_number(value)}</td>'
  return f"<td>{html.escape(str(value))}</td>"


def _is_number(value):
  """Whether it is a finite number, NumPy's scalars included."""
  return (
    isinstance(value, numbers.Real)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def _is_unknown(value):
  return value is None or (
    isinstance(value, numbers.Real) and not math.isfinite(value)
  )


def _number(value, sign=""):
  if isinstance(value, numbers.Integral):
    return f"{value:{sign},}"
  if value == 0 or 0.001 <= abs(value) < 1000:
    return f"{value:{sign}.3f}"
  return f"{value:{sign}.3g}"


def _settings(settings):
  rows = [
    f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
    for name, value in _flat(settings)
  ]
  return (
    f"<section>\n<details><summary>Settings ({len(rows)})</summary>\n"
    f"<table>\n{chr(10).join(rows)}\n</table></details>\n</section>"
  )


def _flat(tree, prefix=""):
  """Yields (dotted name, JSON text) of each leaf, sorted by name."""
  for name, value in sorted(tree.items()):
    if isinstance(value, dict) and value:
      yield from _flat(value, f"{prefix}{name}.")
    else:
      yield prefix + name, json.dumps(value)
