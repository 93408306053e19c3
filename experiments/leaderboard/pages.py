"""A page a method, made from its config and its row of the leaderboard.

  python -m experiments.leaderboard.pages

Writes docs/methods/: what a method is and where it comes from (the docstring of
its config), which fields it changes against Flow-GRPO's, and what was measured.
"""

import ast
import json
import pathlib

from experiments.leaderboard import table
from spatialrl.train.configs import load_config

_METHODS = pathlib.Path("configs/methods")
_PAGES = pathlib.Path("docs/methods")
_RESULTS = pathlib.Path(__file__).with_name("results.json")


def main():
  _PAGES.mkdir(parents=True, exist_ok=True)
  for name, text in pages().items():
    (_PAGES / name).write_text(text, encoding="utf-8")


def pages():
  """All pages: dict from file name to Markdown."""
  records = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else []
  base = _fields(_METHODS / "flow_grpo.py")
  lines, made = [], {}
  for path in sorted(_METHODS.glob("*.py")):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    title, _, body = doc.partition("\n")
    made[f"{path.stem}.md"] = _page(
        title, body.strip(), path, _changes(base, _fields(path)),
        [r for r in records if r["method"] == path.stem],
    )
    lines.append(f"- [{title.rstrip('.')}]({path.stem}.md)")
  made["README.md"] = (
      "# Methods\n\nOne config a method in `configs/methods/`; these pages are"
      " made from them by\n`python -m experiments.leaderboard.pages`.\n\n"
      + "\n".join(lines) + "\n"
  )
  return made


def _page(title, body, path, changes, records):
  parts = [f"# {title.rstrip('.')}", body, f"    {_command(path)}"]
  if changes:
    rows = [f"| `{field}` | {old} | {new} |" for field, old, new in changes]
    parts.append(
        "What it changes against Flow-GRPO:\n\n| field | Flow-GRPO | here |\n"
        "|---|---|---|\n" + "\n".join(rows)
    )
  else:
    parts.append("The other methods are changes of this one.")
  for budget in sorted({r["budget"] for r in records}):
    mine = [r for r in records if r["budget"] == budget]
    parts.append(f"Budget `{budget}`:\n\n{table.markdown(mine).strip()}")
  if not records:
    parts.append("Not measured yet.")
  return "\n\n".join(parts) + "\n"


def _command(path):
  return (
      f"python -m spatialrl.main --config {path.as_posix()}"
      f" --workdir runs/{path.stem}"
  )


def _fields(path):
  """Leaves of a config, {dotted field: value}."""
  flat = {}

  def visit(prefix, node):
    for key, value in node.items():
      if isinstance(value, dict):
        visit(f"{prefix}{key}.", value)
      else:
        flat[prefix + key] = value

  visit("", load_config(path).to_dict())
  return flat


def _changes(base, fields):
  changed = []
  for field in sorted(base.keys() | fields.keys()):
    old, new = base.get(field), fields.get(field)
    if old != new:
      shown = ["" if v is None else f"`{v}`" for v in (old, new)]
      changed.append((field, *shown))
  return changed


if __name__ == "__main__":
  main()
