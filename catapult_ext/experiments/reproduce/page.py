"""One self-contained HTML page about a finished experiment, readable on screen and in print."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from catapult_ext.experiments.reproduce.outcome import Row

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
th { border-bottom: 2px solid #555; }
.numbers th, .numbers td { padding: .2rem .45rem; text-align: right; vertical-align: bottom; }
td.yes { color: #00563f; font-weight: 600; } td.no { color: #a33c00; font-weight: 600; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
code { background: #f6f6f6; padding: .15rem .35rem; font-size: .82rem; }
@page { size: A4; margin: 14mm; }
@media print { body { max-width: none; font-size: 10.5px; margin: 0; padding: 0; }
  .wide { overflow: visible; } .numbers { font-size: 7px; }
  .numbers th, .numbers td { padding: .1rem .2rem; }
  h2 { break-after: avoid; } figure, tr { break-inside: avoid; } img { max-width: 78%; } }
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
    """The page's HTML; it needs no other file.

    Args:
        title: heading.
        paragraphs: below it.
        command: the command line that gives this page.
        claims: rows of the first table.
        pictures: PNG bytes by their title, which the picture shows itself.
        tables: rows by heading; a column ``x_se`` becomes the error of ``x``.
        facts: by heading, names and values.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(text)}</p>" for text in paragraphs),
        f"<p><code>{escape(command)}</code></p>",
        "<h2>Claims</h2>",
        _table(claims),
    ]
    for name, png in pictures.items():
        data = base64.b64encode(png).decode()
        parts.append(
            f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}"></figure>'
        )
    for name, rows in tables.items():
        parts += [f"<h2>Table: {escape(name.replace('_', ' '))}</h2>"]
        parts += [_table([_with_errors(row) for row in rows], "numbers")]
    for name, values in facts.items():
        rows = [{"name": key, "value": _short(value)} for key, value in values.items()]
        parts += [f"<h2>{escape(name)}</h2>", _table(rows)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        "<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


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
    head = "".join(f"<th>{escape(str(name).replace('_', ' '))}</th>" for name in rows[0])
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
