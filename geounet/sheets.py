"""A page that stands alone: all that it needs is in it, and it asks for nothing.

Pictures that move are Bokeh's, whose scripts are in the page too. A policy in its head
(https://www.w3.org/TR/CSP3/) lets it load nothing and run no script but those that it
was written with, known by their sha256: what comes from files is escaped, and what was
not could still not run. Bokeh compiles the few lines that join a slider to a layer,
hence 'unsafe-eval'. Figures and tables are as wide as they are made, or as the window
where that is narrower; a map keeps its shape.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from geounet.progress import printable
from geounet.raster import replacing

if TYPE_CHECKING:
    from bokeh.models import UIElement

INK, PAPER, FAINT, RULE = "#1b1f24", "#ffffff", "#57606a", "#d0d7de"
"""Colours of text, ground, lesser text and lines; text on ground is 6:1 and more."""
LINK = "#0550ae"
FONT = "system-ui, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"

_FIGURES = "figures"
_START = f"""\
"use strict";
const items = JSON.parse(document.getElementById("{_FIGURES}").textContent);
const wide = new Map();
const parts = () => Bokeh.documents.flatMap(d => d.roots())
  .flatMap(root => [...root.references()])
  .filter(part => part.type == "Figure" || part.type == "DataTable");
const fitMap = (map, room) => {{
  const [width, height] = wide.get(map);
  const beside = Bokeh.index.find_one(map).el.offsetWidth - map.frame_width;
  const narrower = Math.min(width, room - beside);
  const lower = Math.round(height * narrower / width);
  map.setv({{frame_width: narrower, frame_height: lower}});
}};
const fit = () => {{
  const room = document.getElementById(items[0].target_id).clientWidth - 10;
  for (const part of parts()) {{
    const isMap = part.frame_width != null;
    if (!wide.has(part)) wide.set(part,
      isMap ? [part.frame_width, part.frame_height] : [part.width]);
    if (isMap) fitMap(part, room);
    else part.width = Math.min(wide.get(part)[0], room);
  }}
}};
Promise.all(items.map(item => Bokeh.embed.embed_item(item))).then(() => {{
  fit();
  addEventListener("resize", fit);
}});
"""
_STYLE = f"""\
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f6f8fa; color: {INK};
  font: 15px/1.5 {FONT}; }}
main {{ max-width: 1300px; margin: 0 auto; padding: 20px 24px 48px; }}
h1 {{ font-size: 26px; line-height: 1.25; margin: 0 0 2px; overflow-wrap: anywhere; }}
h2 {{ font-size: 18px; margin: 0 0 10px; }}
p {{ margin: 0 0 10px; max-width: 90ch; overflow-wrap: anywhere; }}
.lead, .note {{ color: {FAINT}; }}
.note {{ font-size: 13px; }}
section {{ background: {PAPER}; border: 1px solid {RULE}; border-radius: 8px;
  padding: 16px 18px; margin-top: 16px; overflow-x: auto; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 4px 18px 4px 0; vertical-align: top;
  border-bottom: 1px solid {RULE}; }}
th {{ font-weight: 600; }}
td.number, th.number {{ text-align: right; white-space: nowrap; }}
td {{ overflow-wrap: anywhere; }}
td:first-child {{ overflow-wrap: normal; }}
td:has(.swatch) {{ white-space: nowrap; }}
.swatch {{ display: inline-block; width: 14px; height: 14px; margin-right: 8px;
  border: 1px solid {INK}; border-radius: 3px; vertical-align: -2px; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px;
  margin: 0; }}
dt {{ color: {FAINT}; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
a {{ color: {LINK}; }}
a:focus-visible {{ outline: 3px solid {LINK}; outline-offset: 2px; }}
ul {{ margin: 0; padding-left: 20px; }}
@media (max-width: 600px) {{
  main {{ padding: 12px 8px 32px; }}
  section {{ padding: 12px 10px; }}
}}
"""


def write_sheet(
    path: Path, *, title: str, body: str, figures: Mapping[str, UIElement]
) -> None:
    """Write a page, whole or not at all; the same content gives the same bytes.

    Args:
        path: the file.
        title: of the page, as text.
        body: HTML, with an element for each figure, by its id.
        figures: Bokeh's models, by the id of the element that they go into.

    Raises:
        OutputError: it cannot be written.
    """
    items = [_item(model, target) for target, model in figures.items()]
    with replacing(path) as partial:
        partial.write_text(_page(title, body, items), encoding="utf-8", newline="\n")


def _page(title: str, body: str, items: Sequence[dict[str, Any]]) -> str:
    scripts = [*_library(), _START] if items else []
    tags = "\n".join(f"<script>{script}</script>" for script in scripts)
    # no `<` leaves the block, and it is data: a browser does not run it
    data = json.dumps(items, separators=(",", ":")).replace("<", "\\u003c")
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="{_FIGURES}">{data}</script>
{tags}
</body>
</html>
"""


def _policy(scripts: Iterable[str]) -> str:
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    known = " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
    return (
        f"default-src 'none'; script-src {known} 'unsafe-eval'; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@lru_cache(maxsize=1)
def _library() -> tuple[str, ...]:
    """Return Bokeh's scripts, with line ends as a browser hashes them."""
    from bokeh.resources import Resources

    parts = ["bokeh", "bokeh-widgets", "bokeh-tables"]
    raw = Resources(mode="inline", components=parts, log_level="warn").js_raw
    return tuple(script.replace("\r\n", "\n") for script in raw)


# --- models -----------------------------------------------------------------------


def _item(model: UIElement, target: str) -> dict[str, Any]:
    """Return what `Bokeh.embed.embed_item` takes."""
    from bokeh.embed import json_item

    return _numbered(dict(json_item(model, target)), target)


def _numbered(item: dict[str, Any], target: str) -> dict[str, Any]:
    """Name models by their order: Bokeh counts on through a process, or draws lots."""
    names: dict[str, str] = {}
    for node in _nodes(item["doc"]):
        if node.get("type") == "object" and "id" in node:
            names[node["id"]] = f"{target}{len(names)}"
    for node in _nodes(item["doc"]):
        if isinstance(node.get("id"), str):
            node["id"] = names.get(node["id"], node["id"])
    return item | {"root_id": names[item["root_id"]]}


def _nodes(value: Any) -> Iterable[dict[str, Any]]:
    """Yield every object in what Bokeh makes JSON of, outer ones first.

    Objects of ours are not among them: mappings are lists of pairs there.
    """
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack.extend(reversed([*value.values()]))
        elif isinstance(value, list | tuple) and not _is_numbers(value):
            stack.extend(reversed(value))


def _is_numbers(values: Sequence[Any]) -> bool:
    """Tell whether a list is one of numbers, of which there are very many."""
    return not values or isinstance(values[0], int | float)


# --- words ------------------------------------------------------------------------


def text(value: object) -> str:
    """Return text as HTML has it; what cannot be shown is written with backslashes."""
    return escape(printable(value).encode("utf-8", "backslashreplace").decode())


def link(name: str, shown: str | None = None) -> str:
    """Return a link to a file, by its path from the page's folder."""
    return f'<a href="{text(address_of(name))}">{text(shown or name)}</a>'


def address_of(name: str) -> str:
    """Return the address of a file, by its path from the page's folder.

    It begins with a dot, so that no name is taken for a scheme or for a host.
    """
    return "./" + quote(name.encode("utf-8", "surrogateescape"))


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()
) -> str:
    """Return a table of cells that are HTML.

    Args:
        head: of the columns, as text.
        rows: cells of each row.
        numbers: columns that hold numbers, from 0.
    """
    right = frozenset(numbers)

    def row(cells: Iterable[str], tag: str) -> str:
        made = (
            f"<{tag}{' class=number' if i in right else ''}>{cell}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    lines = [row(map(text, head), "th"), *(row(cells, "td") for cells in rows)]
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a list of what is known: names as text, and what they are as HTML."""
    lines = (f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in pairs)
    return "<dl>\n" + "\n".join(lines) + "\n</dl>"


def section(heading: str, body: str) -> str:
    """Return a part of a page under its heading."""
    return f"<section>\n<h2>{text(heading)}</h2>\n{body}\n</section>"


def swatch(rgb: tuple[int, int, int]) -> str:
    """Return a little square of a colour."""
    return f'<span class="swatch" style="background:{hex_of(rgb)}"></span>'


def hex_of(rgb: tuple[int, int, int]) -> str:
    """Return a colour as ``#rrggbb``."""
    return "#" + bytes(rgb).hex()


def size_of(count: float) -> str:
    """Return bytes in words."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:  # noqa: PLR2004  of units
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
