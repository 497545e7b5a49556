"""claims.json, CSV tables, PNG and SVG pictures and one self-contained HTML page per run."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catapult_ext.experiments.reproduce.outcome import COLOURS, DASHES, MARKERS, Claim, Panel, Row
from catapult_ext.experiments.reproduce.page import page
from catapult_ext.runs import RunFolder, RunFolderError

if TYPE_CHECKING:
    from catapult_ext.experiments.reproduce.registry import Reproduction

HOLDS = {True: "holds", False: "does not hold", None: "undecided"}


def claim_rows(claims: list[Claim]) -> list[Row]:
    """The claims as table rows."""
    return [
        {
            "claim": c.name,
            "predicted": c.predicted,
            "measured": c.measured,
            "verdict": HOLDS[c.holds],
            "why": c.why,
        }
        for c in claims
    ]


def command(done: Reproduction) -> str:
    """The command line that runs this experiment with these settings."""
    words = ["catapult-ext", "reproduce", done.experiment.name]
    words += [] if done.scale == "cpu" else ["--scale", done.scale]
    words += [] if done.device == "cpu" else ["--device", done.device]
    words += [] if done.data_folder is None else ["--data-dir", str(done.data_folder)]
    usual = done.experiment.settings[done.scale]
    for field in dataclasses.fields(usual):
        value = getattr(done.settings, field.name)
        if value != getattr(usual, field.name):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += ["--set", f"{field.name}={text}"]
    return shlex.join(words)


def write_report(folder: RunFolder, done: Reproduction) -> None:
    """Write everything about a finished experiment into its run folder."""
    outcome, experiment = done.outcome, done.experiment
    claims = [dataclasses.asdict(c) for c in outcome.claims]
    head = {"experiment": experiment.name, "scale": done.scale, "verdict": outcome.verdict}
    told = {"command": command(done), "claims": claims, "notes": outcome.notes}
    folder.write_json("claims.json", head | told)
    folder.write_json("summary.json", head | {"tables": outcome.tables})
    for name, rows in outcome.tables.items():
        folder.write_csv(f"table_{name}.csv", rows)
    pictures = {}
    for name, panel in outcome.panels.items():
        pictures[name], svg = draw(panel)
        folder.write_bytes(f"fig_{name}.png", pictures[name])
        folder.write_bytes(f"fig_{name}.svg", svg)
    times = folder.read_json("timing.json") or {}
    data = folder.read_json("data.json")
    text = page(
        f"{experiment.name}: {experiment.title}",
        [f"{experiment.source}.", f"{outcome.verdict}.", *outcome.notes],
        command(done),
        claim_rows(outcome.claims),
        {outcome.panels[name].title: png for name, png in pictures.items()},
        outcome.tables,
        {
            "Configuration": folder.config,
            **({"Data": data} if data else {}),
            "Environment": folder.started_in,
            "Seconds": {
                "elapsed, sum over the parts": times.get("total_seconds"),
                "of processors": times.get("total_processor_seconds"),
            },
        },
    )
    folder.write_bytes("report.html", text.encode())


def draw(panel: Panel) -> tuple[bytes, bytes]:
    """A panel as PNG and SVG bytes without date or version: equal pictures are equal files."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "catapult_ext",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.0, 4.2))
        figure.subplots_adjust(left=0.11, right=0.97, bottom=0.12, top=0.92)
        _fill(figure.add_subplot(), panel)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=130, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def _fill(ax: Any, panel: Panel) -> None:
    for i, s in enumerate(panel.series):
        colour = COLOURS[i % len(COLOURS)]
        look = {"color": colour, "label": s.label, "ms": 3.5, "lw": 1.2, "capsize": 2}
        look |= {"ls": DASHES[i % len(DASHES)]} if s.style == "-" else {}
        style = s.style.replace("o", MARKERS[i % len(MARKERS)])
        ax.errorbar(s.x, s.y, s.error, fmt="" if s.style == "-" else style, **look)
    for i, (label, x) in enumerate(panel.vlines.items()):
        ax.axvline(x, color="#8A8A8A", ls=("--", "-.", ":")[i % 3], lw=1, label=label)
    for label, y in panel.hlines.items():
        ax.axhline(y, color="#8A8A8A", ls=":", lw=1, label=label)
    ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    ax.set_title(panel.title, loc="left", fontsize=9.5)
    xs = [v for s in panel.series for v in s.x]
    if panel.xlog:
        ax.set_xscale("log")
        _plain_ticks(ax.xaxis, xs)
    elif 1 < len(set(xs)) <= 8 and all(v == int(v) for v in xs):
        ax.set_xticks(sorted(set(xs)))
    values = [v for s in panel.series for v in s.y if v > 0] or [1.0]
    if panel.ylog and max(values) > 3 * min(values):  # less is clearer on a linear axis
        ax.set_yscale("log")
        if min(values) > 1e-3 and max(values) < min(1e4, 300 * min(values)):
            _plain_ticks(ax.yaxis, [])
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=7.5, framealpha=0.85)


def _plain_ticks(axis: Any, values: list[float]) -> None:
    """Numbers instead of powers of ten: at the values themselves if few, else at 1, 2, 5, 10."""
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogLocator,
        NullFormatter,
        NullLocator,
    )

    own = sorted(set(values))
    apart = all(b > 1.3 * a for a, b in itertools.pairwise(own))
    few = 1 < len(own) <= 8 and apart
    axis.set_major_locator(FixedLocator(own) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    if few:
        axis.set_minor_locator(NullLocator())


def compare(first: Path | str, second: Path | str) -> list[Row]:
    """Two finished runs claim by claim, and the settings in which they differ.

    Raises:
        RunFolderError: a folder without a finished reproduction.
    """
    (config_a, a), (config_b, b) = _finished(Path(first)), _finished(Path(second))
    rows: list[Row] = []
    for name in sorted({*config_a, *config_b}):
        if config_a.get(name) != config_b.get(name):
            rows.append(_row(f"setting {name}", config_a.get(name), config_b.get(name)))
    for name in [*a, *(n for n in b if n not in a)]:
        rows.append(_row(name, _short(a.get(name)), _short(b.get(name))))
    return rows


def _row(what: str, a: Any, b: Any) -> Row:
    return {"what": what, "first": str(a), "second": str(b), "same": "yes" if a == b else "no"}


def _short(claim: dict[str, Any] | None) -> str:
    return "-" if claim is None else f"{HOLDS[claim['holds']]}: {claim['measured']}"


def _finished(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))["config"]
        claims = json.loads((path / "claims.json").read_text(encoding="utf-8"))["claims"]
        return config, {c["name"]: c for c in claims}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"catapult_ext.reproduce: {path} holds no finished reproduction ({error})"
        ) from error
