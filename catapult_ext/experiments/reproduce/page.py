"""One self-contained HTML page about a finished experiment, readable on screen and in print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from catapult_ext.experiments.reproduce.outcome import Row
from catapult_ext.runs.html import document, figure

_STYLE = """
th, td { text-align: left; vertical-align: top; }
.numbers th, .numbers td { padding: .2rem .45rem; text-align: right; vertical-align: bottom; }
td.yes { color: #00563f; font-weight: 600; } td.no { color: #a33c00; font-weight: 600; }
code { background: #f6f6f6; padding: .15rem .35rem; font-size: .82rem; }
@page { size: A4; margin: 14mm; }
@media print { body { font-size: 10.5px; padding: 0; }
  .wide { overflow: visible; } .numbers { font-size: 7px; }
  .numbers th, .numbers td { padding: .1rem .2rem; }
  h2 { break-after: avoid; } img { max-width: 78%; } }
"""


def page(
    title: str,
    paragraphs: Iterable[str],
    command: str,
    claims: list[Row],
    pictures: Mapping[str, bytes],
    tables: Mapping[str, list[Row]],
    facts: Mapping[str, Mapping[str, Any]],
) -> str:
    """HTML of a report page, which needs no other file.

    Args:
        title: heading of the page.
        paragraphs: texts below the heading.
        command: the command line that reproduces this page.
        claims: rows of the first table.
        pictures: PNG bytes by title; each picture already shows its title.
        tables: rows by heading; a column ``x_se`` is printed as the error of ``x``.
        facts: names and values by heading.
    """
    parts = [
        *(f"<p>{escape(text)}</p>" for text in paragraphs),
        f"<p><code>{escape(command)}</code></p>",
        "<h2>Claims</h2>",
        _table(claims),
    ]
    parts += [figure(png, name) for name, png in pictures.items()]
    for name, rows in tables.items():
        parts += [f"<h2>Table: {escape(name.replace('_', ' '))}</h2>"]
        parts += [_table([_with_errors(row) for row in rows], "numbers")]
    for name, values in facts.items():
        rows = [{"name": key, "value": _short(value)} for key, value in values.items()]
        parts += [f"<h2>{escape(name)}</h2>", _table(rows)]
    return document(title, parts, _STYLE)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_short(v) for v in value)
    return value if isinstance(value, str) else json.dumps(value)


def _with_errors(row: Row) -> Row:
    """The row with every ``x_se`` written behind ``x``."""
    merged = {k: v for k, v in row.items() if not (k.endswith("_se") and k[:-3] in row)}
    for name, value in merged.items():
        error = row.get(f"{name}_se")
        if value is not None and error is not None:
            merged[name] = f"{value:.4g} \u00b1 {error:.2g}"
    return merged


def _table(rows: list[Row], kind: str = "") -> str:
    if not rows:
        return "<p>No rows.</p>"
    names = [escape(str(name).replace("_", " ")) for name in rows[0]]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    lines = []
    for row in rows:
        cells = []
        for value in row.values():
            text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else value
            mark = {"holds": "yes", "does not hold": "no"}.get(str(text), "")
            cells.append(f'<td class="{mark}">{escape(str(text))}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "".join(lines)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
