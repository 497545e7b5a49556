"""One self-contained HTML page per run: text, table, pictures, configuration."""

from __future__ import annotations

import base64
import json
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }
th { border-bottom: 2px solid #555; }
tr.lazy td { background: #eef5fa; } tr.catapult td { background: #fdf6e3; }
tr.divergent td { background: #eee; color: #555; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .85rem; }
pre { background: #f6f6f6; padding: .7rem; font-size: .78rem; overflow-x: auto; }
@media print { body { max-width: none; font-size: 11px; margin: 0; }
  figure, tr { break-inside: avoid; } tr td { print-color-adjust: exact; } }
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
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(text)}</p>" for text in paragraphs)]
    if table:
        parts += ["<h2>Learning rates</h2>", f'<div class="wide">{_table(table)}</div>']
    if pictures:
        parts.append("<h2>Pictures</h2>")
    for caption, png in pictures.items():
        data = base64.b64encode(png).decode()
        text = escape(caption)
        parts.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    for heading, value in appendix.items():
        text = json.dumps(value, indent=1, sort_keys=True)
        parts.append(f"<h2>{escape(heading)}</h2><pre>{escape(text)}</pre>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _table(rows: list[dict[str, str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    lines = []
    for row in rows:
        kind = escape(row.get("phase", "").split(" ")[0])
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.values())
        lines.append(f'<tr class="{kind}">{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
