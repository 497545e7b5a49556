"""One self-contained HTML page per run: text, table, pictures, configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from catapult_ext._store import RunFolder
from catapult_ext.runs.html import document, figure

_STYLE = """
th, td { text-align: right; white-space: nowrap; }
tr.lazy td { background: #eef5fa; } tr.flat td { background: #e8f5ef; }
tr.catapult td { background: #fdf6e3; }
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


def write(
    folder: RunFolder,
    title: str,
    result: Any,
    pictures: dict[str, bytes],
    captions: Mapping[str, str],
) -> None:
    """Write summary.json, summary.csv, the pictures and report.html of a finished run.

    Args:
        folder: folder of the run.
        title: heading of the page.
        result: has ``summary``, whose ``rates`` are the rows, ``closing()`` and ``table()``.
        pictures: PNG bytes by name.
        captions: captions of the pictures on the page, by name.
    """
    folder.write_json("summary.json", result.summary)
    folder.write_csv("summary.csv", result.summary["rates"])
    for name, png in pictures.items():
        folder.write_bytes(f"fig_{name}.png", png)
    shown = {captions[name]: png for name, png in pictures.items()}
    facts = {"Configuration": folder.config, "Environment": folder.started_in}
    text = page(title, [result.closing()], result.table(), shown, facts)
    folder.write_bytes("report.html", text.encode())


def cell(value: float | None, form: str = "{:.3g}") -> str:
    """A number of a table as short text; nothing for None."""
    return "" if value is None else form.format(value)


def phase_cell(row: Mapping[str, Any]) -> str:
    """The phase of a row, with its flags in brackets."""
    return " ".join((row["phase"], *(f"({flag})" for flag in row["flags"].split())))


def _table(rows: list[dict[str, str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in rows[0])
    lines = []
    for row in rows:
        kind = escape(row.get("phase", "").split(" ")[0])
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.values())
        lines.append(f'<tr class="{kind}">{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
