"""One self-contained HTML page per run: text, table, pictures, configuration."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from catapult_ext.runs.html import document, figure

_STYLE = """
th, td { text-align: right; white-space: nowrap; }
tr.lazy td { background: #eef5fa; } tr.catapult td { background: #fdf6e3; }
tr.divergent td { background: #eee; color: #555; }
figcaption { color: #555; font-size: .85rem; }
pre { background: #f6f6f6; padding: .7rem; font-size: .78rem; overflow-x: auto; }
@media print { body { font-size: 11px; } tr td { print-color-adjust: exact; } }
"""


def page(
    title: str,
    paragraphs: list[str],
    table: list[dict[str, str]],
    pictures: dict[str, bytes],
    appendix: dict[str, Any],
) -> str:
    """An HTML page that needs no other file and no network.

    Args:
        title: heading.
        paragraphs: plain text, the finding first.
        table: rows of equal keys; a ``phase`` entry colours the row.
        pictures: PNG bytes by caption.
        appendix: JSON values by heading, shown at the end.
    """
    parts = [f"<p>{escape(text)}</p>" for text in paragraphs]
    if table:
        parts += ["<h2>Learning rates</h2>", f'<div class="wide">{_table(table)}</div>']
    if pictures:
        parts.append("<h2>Pictures</h2>")
    parts += [figure(png, caption, caption=True) for caption, png in pictures.items()]
    for heading, value in appendix.items():
        text = json.dumps(value, indent=1, sort_keys=True)
        parts.append(f"<h2>{escape(heading)}</h2><pre>{escape(text)}</pre>")
    return document(title, parts, _STYLE)


def _table(rows: list[dict[str, str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    lines = []
    for row in rows:
        kind = escape(row.get("phase", "").split(" ")[0])
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.values())
        lines.append(f'<tr class="{kind}">{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
