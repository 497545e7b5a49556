"""The Markdown table of the peers, from the JSON record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


def lines(record: dict[str, Any]) -> list[str]:
    """The table, one line per contender."""
    out = [
        "| work | contender | time | ours is | products | true error | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"].values():
        found = row["contenders"]
        best = min(
            (found[n]["seconds"] for n in row["ours"] if "seconds" in found[n]), default=None
        )
        for i, (name, c) in enumerate(found.items()):
            work = row["work"] if i == 0 else ""
            out.append(f"| {work} | {_title(name, c, row)} | {_cells(c, best, row)} |")
    return out


def _title(name: str, c: dict[str, Any], row: dict[str, Any]) -> str:
    if name in row["ours"]:
        name = f"**{name}**"
    return f"{name}, {c['setting']}" if c.get("setting") else name


def _cells(c: dict[str, Any], best: float | None, row: dict[str, Any]) -> str:
    if "failed" in c:
        return f"fails: {c['failed'][:80].replace('|', '/').splitlines()[0]} | | | |"
    products = "" if c.get("products") is None else f"{c['products']:g}"
    rest = f"{products} | {c['error']:.1e} | {c['peak_bytes'] / 2**20:.0f} MiB"
    if "seconds" not in c:
        return f"not timed: error above {row['allowed']:g} | | {rest}"
    ratio = "" if best is None else f"{c['seconds'] / best:.2f}x"
    return f"{_time(c['seconds'])} | {ratio} | {rest}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def write(page: Path, record: dict[str, Any]) -> None:
    """Replace what stands between the two markers of ``page``."""
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    body = "\n".join(lines(record))
    page.write_text(f"{head}{BEGIN}\n{body}\n{END}{tail}", encoding="utf-8")
