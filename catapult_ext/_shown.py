"""How results show themselves: a line in a shell, a table and a picture in a notebook."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import torch

MOST_ROWS = 30  # of a table in a notebook
_TABLE = "text-align: right; padding: 2px 10px"


class Shown:
    """A result with a line for a shell, a table, a DataFrame and, where it has one, a picture.

    ``class Result(Shown, saved=True)`` is also one that ``torch.load(weights_only=True)`` takes:
    its attributes must be tensors, numbers, texts, lists, tuples and dictionaries.
    """

    def __init_subclass__(cls, *, saved: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if saved:
            torch.serialization.add_safe_globals([cls])

    def _line(self) -> str:
        """The object in one line."""
        raise NotImplementedError

    def _table(self) -> Sequence[Mapping[str, Any]]:
        """Its rows, all with the same keys."""
        return []

    def _picture(self) -> Any:
        """A matplotlib Figure of it, or None."""
        return None

    def to_pandas(self) -> Any:
        """The table as a ``pandas.DataFrame``, a row each.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                f"catapult_ext.{type(self).__name__}.to_pandas: needs pandas: pip install pandas"
            ) from error
        return pandas.DataFrame(list(self._table()))

    def __repr__(self) -> str:
        return self._line()

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self._line())}</p>", _html_table(self._table())]
        try:
            picture = self._picture()
        except RuntimeError:  # no matplotlib
            picture = None
        if picture is not None:
            data = base64.b64encode(picture._repr_png_()).decode()
            name = html.escape(type(self).__name__)
            parts.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
        return "<div>" + "".join(parts) + "</div>"


def number(value: Any) -> str:
    """A table's cell: five significant digits of a float, a dash for None."""
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def first(values: Sequence[Any], most: int = 3) -> str:
    """The first few of ``values`` as text, and whether more follow."""
    shown = ", ".join(number(value) for value in values[:most])
    return shown + (", ..." if len(values) > most else "")


def _html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    names = list(rows[0])
    head = "".join(f'<th scope="col" style="{_TABLE}">{html.escape(str(n))}</th>' for n in names)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{_TABLE}">{html.escape(number(row[n]))}</td>' for n in names)
        + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    left = len(rows) - MOST_ROWS
    more = f"<p>and {left} more rows</p>" if left > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
