"""Palette and style of all pictures, and how a figure is made and written; matplotlib on demand."""

from __future__ import annotations

import functools
import importlib.util
import io
from pathlib import Path
from typing import Any

from catapult_ext._store import write_atomically, writing

# Okabe-Ito colours: distinct for colour-blind readers; line styles and markers say the same again.
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
RED = "#D55E00"
SKY = "#56B4E9"
PURPLE = "#CC79A7"
BLACK = "#000000"
GREY = "#8A8A8A"  # lines that mark a value
DARK = "#3B3B3B"  # from here on: areas, hatches, points and notes
PALE = "#C6DBEF"
PALE_BLUE = "#DCEBF5"
PALE_ORANGE = "#FCEFD0"
PALE_GREY = "#E4E4E4"
LIGHT_GREY = "#BBBBBB"
INK = "#444444"
NAVY = "#1F3B57"

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "legend.fontsize": 7.5,
    "legend.framealpha": 0.85,
    "savefig.facecolor": "white",
}
_MISSING = (
    "catapult_ext.figures: pictures need matplotlib, which the extra 'experiments' brings: "
    "pip install 'catapult_ext[experiments]'"
)


def require_matplotlib() -> None:
    """Fail before any work is done where the pictures could not be drawn; imports nothing.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError(_MISSING)


def load_matplotlib() -> Any:
    """The package matplotlib.

    Raises:
        RuntimeError: it is missing; the message names the extra.
    """
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise RuntimeError(_MISSING) from error
    return matplotlib


def styled() -> Any:
    """A context in which figures are drawn in ``STYLE``."""
    return load_matplotlib().rc_context(STYLE)


@functools.cache
def _figure_class(base: Any) -> Any:
    class Figure(base):
        """A figure that a notebook shows although pyplot was never imported."""

        def _repr_png_(self) -> bytes:
            return png(self, 110)

    return Figure


def new_figure(width: float, height: float) -> Any:
    """An empty Figure of a size in inches; it needs no display and no pyplot.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    figure = _figure_class(load_matplotlib().figure.Figure)
    return figure(figsize=(width, height), layout="constrained")


def png(figure: Any, dpi: int) -> bytes:
    """A figure as PNG bytes; no date or version inside, so equal pictures are equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Any) -> bytes:
    """A figure as SVG bytes; equal files under a fixed ``svg.hashsalt``, as :func:`png`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def pdf(figure: Any) -> bytes:
    """A figure as PDF bytes; text stays text, and no date or version is stored (:func:`png`)."""
    buffer = io.BytesIO()
    blank = {"CreationDate": None, "Creator": None, "Producer": None}
    with load_matplotlib().rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format="pdf", metadata=blank)
    return buffer.getvalue()


FORMATS = (".png", ".svg", ".pdf")


def save_figure(figure: Any, path: Path | str, dpi: int = 150) -> Path:
    """Write a figure as PNG, SVG or PDF, by the suffix, and the folders above it.

    Raises:
        ValueError: another suffix.
        RunFolderError: the file cannot be written.
    """
    path, where = Path(path), "catapult_ext.figures"
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        wanted = ", ".join(FORMATS)
        raise ValueError(f"{where}: path must end in one of {wanted}, got {str(path)!r}")
    makers = {".png": lambda: png(figure, dpi), ".svg": lambda: svg(figure)}
    held = makers.get(suffix, lambda: pdf(figure))()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, held)
    return path


def plain_log_ticks(axis: Any, at: list[float] | None = None) -> None:
    """Plain numbers on a logarithmic axis: at the values given, or at 1, 2, 5 of every decade."""
    from matplotlib import ticker

    axis.set_major_locator(
        ticker.FixedLocator(at) if at else ticker.LogLocator(subs=(1.0, 2.0, 5.0))
    )
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
    if at:
        axis.set_minor_locator(ticker.NullLocator())
