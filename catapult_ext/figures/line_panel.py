"""Pictures of the experiments: lines with error bars on one pair of axes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from catapult_ext.figures import style

COLOURS = (
    style.BLUE,
    style.RED,
    style.GREEN,
    style.ORANGE,
    style.SKY,
    style.PURPLE,
    style.BLACK,
)
MARKERS = "os^DvPX"
DASHES = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
# The axes have a fixed place, so that the pictures of one experiment lie over each other.
_SETTINGS = {"axes.titlepad": 6, "svg.hashsalt": "catapult_ext"}
_PLACE = {"left": 0.11, "right": 0.97, "bottom": 0.155, "top": 0.92}
HOLLOW = "hollow: some seeds diverged or died"


@dataclass(frozen=True)
class Series:
    """One line of a panel; ``error`` draws bars, ``style`` is a matplotlib format.

    The markers of "o-" and the dashes of "-" differ from line to line. ``hollow`` points are no
    mean of all seeds, since some were lost.
    """

    label: str
    x: list[float]
    y: list[float]
    error: list[float] | None = None
    style: str = "o-"
    hollow: list[bool] | None = None


@dataclass(frozen=True)
class Panel:
    """One picture with axes; ``vlines`` and ``hlines`` mark values by their labels.

    ``xticks`` are the ticks of x by their place.
    """

    title: str
    xlabel: str
    ylabel: str
    series: list[Series]
    xlog: bool = False
    ylog: bool = False
    vlines: dict[str, float] = field(default_factory=dict)
    hlines: dict[str, float] = field(default_factory=dict)
    xticks: dict[float, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SideBySide:
    """Two panels in one picture; ``shared``: with one range and label of y, and one legend."""

    title: str
    left: Panel
    right: Panel
    shared: bool = True


def draw_panel(panel: Panel | SideBySide, note: str = "") -> dict[str, bytes]:
    """A picture as ``png``, ``svg`` and ``pdf``, without date or version: equal pictures are equal.

    Args:
        panel: what to draw.
        note: small text below the axes, such as data, net and loss.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    matplotlib = style.load_matplotlib()
    with matplotlib.rc_context(style.STYLE | _SETTINGS):
        if isinstance(panel, SideBySide):
            figure = _both(panel)
        else:
            figure = matplotlib.figure.Figure(figsize=(7.0, 4.2))
            figure.subplots_adjust(**_PLACE)
            _fill(figure.add_subplot(), panel)
        if note:
            if isinstance(panel, SideBySide):
                figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))
            figure.text(0.012, 0.012, note, fontsize=7, color=style.INK)
        return {"png": style.png(figure, 130), "svg": style.svg(figure), "pdf": style.pdf(figure)}


def _both(panel: SideBySide) -> Any:
    figure = style.load_matplotlib().figure.Figure(figsize=(10.0, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=panel.shared)
    _fill(left, panel.left)
    _fill(right, panel.right)
    if panel.shared and right.get_legend():
        right.get_legend().remove()
        right.set_ylabel("")
    figure.suptitle(panel.title, fontsize=10)
    return figure


def _fill(ax: Any, panel: Panel) -> None:
    for i, s in enumerate(panel.series):
        colour = COLOURS[i % len(COLOURS)]
        look = {"color": colour, "label": s.label, "ms": 3.5, "lw": 1.2, "capsize": 2}
        look |= {"ls": DASHES[i % len(DASHES)]} if s.style == "-" else {}
        fmt = s.style.replace("o", MARKERS[i % len(MARKERS)])
        ax.errorbar(s.x, s.y, s.error, fmt="" if s.style == "-" else fmt, **look)
        open_ = [(x, y) for x, y, is_ in zip(s.x, s.y, s.hollow or [], strict=False) if is_]
        if open_:
            marker = MARKERS[i % len(MARKERS)]
            white = {"mfc": "white", "mec": colour, "ms": 4.5, "ls": "", "zorder": 5}
            first = HOLLOW not in ax.get_legend_handles_labels()[1]
            ax.plot(*zip(*open_, strict=True), marker, label=HOLLOW if first else None, **white)
    for i, (label, x) in enumerate(panel.vlines.items()):
        ax.axvline(x, color=style.GREY, ls=("--", "-.", ":")[i % 3], lw=1, label=label)
    for label, y in panel.hlines.items():
        ax.axhline(y, color=style.GREY, ls=":", lw=1, label=label)
    ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    ax.set_title(panel.title)
    xs = [x for s in panel.series for x in s.x]
    if panel.xticks:
        ax.set_xticks(list(panel.xticks), list(panel.xticks.values()))
        ax.margins(x=0.25)
    elif panel.xlog:
        ax.set_xscale("log")
        style.plain_log_ticks(ax.xaxis, _ticks(xs))
    elif 1 < len(set(xs)) <= 8 and all(x == int(x) for x in xs):
        ax.set_xticks(sorted(set(xs)))
    values = [y for s in panel.series for y in s.y if y > 0] or [1.0]
    if not panel.ylog and all(y == int(y) for y in values):
        ax.yaxis.get_major_locator().set_params(integer=True)
    if panel.ylog and max(values) > 3 * min(values):  # less is clearer on a linear axis
        ax.set_yscale("log")
        if min(values) > 1e-3 and max(values) < min(1e4, 300 * min(values)):
            style.plain_log_ticks(ax.yaxis)
    if ax.get_legend_handles_labels()[1]:
        ax.legend()


def _ticks(values: list[float]) -> list[float] | None:
    """The values themselves, if they are few and their labels do not overlap."""
    own = sorted(set(values))
    apart = all(b > 1.3 * a for a, b in itertools.pairwise(own))
    return own if 1 < len(own) <= 8 and apart else None
