"""catapult-ext reproduce and compare: the paper's experiments, claim by claim."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

from catapult_ext import _validate as v
from catapult_ext.cli.console import console, load, resumable
from catapult_ext.cli.options import DATA_DIR, STANDARDISE, Argument, Option
from catapult_ext.experiments import reproduce as experiments
from catapult_ext.experiments.workers import cores


def changes(name: str, scale: str, assignments: list[str]) -> dict[str, Any]:
    """``key=value`` texts as settings of the experiment, tuples where it has tuples.

    Raises:
        ValueError: a text that is no assignment.
        TypeError: a value of another kind than the setting's.
    """
    where = "reproduce"
    held = experiments.experiment(name).settings.get(scale)
    found: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            v.fail(where, "--set must be key=value", repr(text))
        try:
            parsed: Any = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed = value  # a word
        present = getattr(held, key, None)
        if isinstance(present, tuple):
            if isinstance(parsed, str):
                parsed = tuple(parsed.split(","))
            parsed = parsed if isinstance(parsed, tuple) else (parsed,)
            numbers = all(isinstance(item, int | float) for item in present)
            kind, wanted = ((int, float), "numbers") if numbers else ((str,), "words")
            if not all(isinstance(item, kind) for item in parsed):
                v.fail(where, f"--set {key} must be {wanted} with commas", repr(value), TypeError)
        elif isinstance(present, float) and isinstance(parsed, int):
            parsed = float(parsed)
        elif present is not None and not isinstance(parsed, (type(present), type(None))):
            wanted = f"--set {key} must be of type {type(present).__name__}"
            v.fail(where, wanted, repr(value), TypeError)
        found[key] = parsed
    return found


def _print_table(rows: list[dict[str, Any]], title: str, order: list[str]) -> None:
    table = load("rich.table").Table(
        title=title, header_style="bold", box=load("rich.box").SIMPLE_HEAD
    )
    for name in order:
        table.add_column(name, overflow="fold", no_wrap=name == "name")
    colours = {"holds": "green", "does not hold": "dark_orange", "no": "dark_orange"}
    for row in rows:
        mark = row.get("verdict", row.get("same"))
        table.add_row(*(str(row[n]) for n in order), style=colours.get(str(mark)))
    console().print(table)


def _print_names() -> None:
    rows = []
    for name in experiments.names():
        found = experiments.experiment(name)
        rows.append({"name": name, "what": found.title, "source": found.source})
    _print_table(rows, "Experiments", ["name", "what", "source"])


def _print_done(done: experiments.Reproduction) -> None:
    shown = console()
    rows = experiments.claim_rows(done.outcome.claims)
    title = f"{done.experiment.name}: {done.experiment.title} ({done.scale})"
    _print_table(rows, title, ["claim", "predicted", "measured", "verdict"])
    for note in done.outcome.notes:
        shown.print(note, highlight=False)
    shown.print(done.outcome.verdict + ".", highlight=False)
    if done.path is not None:
        shown.print(f"\nReport: {done.path / 'report.html'}", highlight=False, soft_wrap=True)


def reproduce(
    name: Annotated[
        str | None,
        Argument("Experiment, or yours as package.module:experiment; without one, the list."),
    ] = None,
    scale: Annotated[
        str, Option("smoke (seconds), cpu (two cores), real (20 minutes) or full (the paper's).")
    ] = "cpu",
    out: Annotated[Path | None, Option("Run folder; default ./catapult-runs/NAME-SCALE.")] = None,
    data: Annotated[
        str | None, Option("A name, FILE.npz or package.module:function; as --set data=.")
    ] = None,
    data_dir: Annotated[Path | None, Option(DATA_DIR)] = None,
    standardise: Annotated[str | None, Option(STANDARDISE)] = None,
    fresh: Annotated[bool, Option("Start again in an existing run folder.", "--fresh")] = False,
    device: Annotated[str, Option("Where to train, such as cuda.")] = "cpu",
    workers: Annotated[
        int | None, Option("Processes that share the cores; default one per core at cpu scale.")
    ] = None,
    settings: Annotated[
        list[str] | None, Option("key=value, such as seeds=3 or c=1,3,8.", "--set")
    ] = None,
) -> None:
    """Run one experiment of the paper and judge its claims."""
    if name is None:
        _print_names()
        return
    changed = changes(name, scale, settings or [])
    if data is not None:
        changed["data"] = data
    usual = f"{name.replace(':', '.')}-{scale}"
    folder = out if out is not None else Path("catapult-runs") / usual
    if workers is None:
        workers = cores() if scale in ("cpu", "real") and device == "cpu" else 1
    shown = console(stderr=True)

    def tell(line: str) -> None:
        shown.print(line, highlight=False, style="dim")

    with resumable("parts"):
        done = experiments.reproduce(
            name,
            scale,
            out=folder,
            data_dir=data_dir,
            standardise=standardise,
            fresh=fresh,
            device=device,
            tell=tell,
            workers=workers,
            **changed,
        )
    _print_done(done)


def compare(
    first: Annotated[Path, Argument("Run folder.")],
    second: Annotated[Path, Argument("Run folder.")],
) -> None:
    """Set two finished reproductions side by side: settings that differ, and every claim."""
    rows = experiments.compare(first, second)
    _print_table(rows, f"{first} and {second}", ["what", "first", "second", "same"])
