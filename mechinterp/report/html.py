"""A page of HTML that works offline, with plotly.js inside it, once; and the parts it is put together from."""

import html
import os
from collections.abc import Iterable
from pathlib import Path
from string import Template

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mechinterp.errors import MechinterpError

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'; img-src data: blob:; font-src data:">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:last-child { text-align: left; }
.scroll { overflow-x: auto; }
.verdict { font-size: 1.2rem; }
figure { margin: 2rem 0; } figcaption { color: #555; font-size: 0.9rem; }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 0.8rem; }
</style>
<script>$plotly</script>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def require_page(path: Path) -> None:
    """Refuse a path that a page cannot be written to, before anything is computed for it."""
    if path.is_file() and path.read_bytes()[:4] == b"\x89HDF":
        raise MechinterpError(f"{path}: is a run file, not a page; choose another file for the report")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise MechinterpError(f"{path}: cannot be written; choose another file")


def write_page(path: Path, title: str, parts: Iterable[str]) -> Path:
    """Write a page and return its path. An existing page is replaced; a run file never is."""
    require_page(path)
    page = _PAGE.substitute(title=html.escape(title), plotly=get_plotlyjs(), body="\n".join(parts))
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise MechinterpError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    return path


def lead(text: str) -> str:
    """The main result, in larger letters."""
    return f'<p class="verdict">{html.escape(text)}</p>'


def code(text: str) -> str:
    """Text as it is."""
    return f"<pre>{html.escape(text)}</pre>"


def figure(drawing: go.Figure, caption: str) -> str:
    """An interactive figure with its caption."""
    drawn = drawing.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    return f"<figure>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table(data: pd.DataFrame) -> str:
    """A table, its index first; numbers are rounded, what is missing is a dash."""

    def shown(value: object) -> str:
        if value is None or value != value:
            return "–"
        if not isinstance(value, float):
            return str(value)
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"

    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in [data.index.name or "", *data.columns])
    rows = (
        "<tr>" + "".join(f"<td>{html.escape(shown(value))}</td>" for value in [index, *row]) + "</tr>"
        for index, row in zip(data.index, data.to_numpy(dtype=object), strict=True)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
