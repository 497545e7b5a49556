"""claims.json, CSV tables, pictures (PNG, SVG, PDF) and one self-contained HTML page per run."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

from catapult_ext._store import RunFolder, RunFolderError
from catapult_ext.experiments.reproduce.outcome import Claim, Reproduction, Row, described
from catapult_ext.experiments.reproduce.page import page
from catapult_ext.figures.line_panel import draw_panel
from catapult_ext.figures.phase_plane import PlanePicture, draw_plane

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
            "on": c.on,
        }
        for c in claims
    ]


def command(done: Reproduction) -> str:
    """The command line that runs this experiment with these settings."""
    words = ["catapult-ext", "reproduce", done.experiment.name]
    words += [] if done.scale == "cpu" else ["--scale", done.scale]
    words += [] if done.device == "cpu" else ["--device", done.device]
    words += [] if done.data_folder is None else ["--data-dir", str(done.data_folder)]
    words += [] if done.standardise is None else ["--standardise", done.standardise]
    usual = done.experiment.settings[done.scale]
    for field in dataclasses.fields(usual):
        value = getattr(done.settings, field.name)
        if value != getattr(usual, field.name):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += ["--data", text] if field.name == "data" else ["--set", f"{field.name}={text}"]
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
    pictures, on = {}, described(experiment, done.settings)
    for name, panel in outcome.panels.items():
        drawn = draw_plane(panel) if isinstance(panel, PlanePicture) else draw_panel(panel, on)
        pictures[name] = drawn["png"]
        for kind, held in drawn.items():
            folder.write_bytes(f"fig_{name}.{kind}", held)
    times = folder.read_json("timing.json") or {}
    data = folder.read_json("data.json")
    text = page(
        f"{experiment.name}: {experiment.title}",
        [f"{experiment.source}.", f"Run here: {on}.", f"{outcome.verdict}.", *outcome.notes],
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


def compare(first: Path | str, second: Path | str) -> list[Row]:
    """Compare two finished runs claim by claim, and list the settings in which they differ.

    Raises:
        RunFolderError: a folder holds no finished reproduction.
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
