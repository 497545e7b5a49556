"""Parts shared by every report page: its shell, its base style and pictures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow: auto; max-height: 85vh; }
thead th { position: sticky; top: 0; background: #fff; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #555; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
@media screen and (prefers-color-scheme: dark) {
  body, thead th { background: #16181b; color: #e4e4e4; }
  th, td { border-color: #3a3d42; } a { color: #7ab8e6; }
  code, pre { background: #24272c !important; } figcaption { color: #a8a8a8 !important; }
  td.yes { color: #4fc79a !important; } td.no { color: #f0915c !important; }
  tr.lazy td { background: #16283a !important; } tr.flat td { background: #173029 !important; }
  tr.catapult td { background: #38301a !important; }
  tr.divergent td { background: #26282c !important; color: #a8a8a8 !important; }
  img { background: #fff; padding: 6px; border-radius: 4px; box-sizing: border-box; } }
@media print { .wide { overflow: visible; max-height: none; }
  body { max-width: none; margin: 0; } figure, tr { break-inside: avoid; } }
"""


def document(title: str, parts: Iterable[str], style: str) -> str:
    """A page that needs no other file and no network.

    Args:
        title: plain text, the heading too.
        parts: HTML, below the heading.
        style: CSS in addition to the base style.
    """
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def figure(png: bytes, name: str, caption: bool = False) -> str:
    """A PNG inside the page; ``caption`` writes its name below it."""
    data, text = base64.b64encode(png).decode(), escape(name)
    below = f"<figcaption>{text}</figcaption>" if caption else ""
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}">{below}</figure>'
