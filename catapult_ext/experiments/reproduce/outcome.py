"""Result of an experiment of the paper: claims, tables, pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from catapult_ext._shown import Shown
from catapult_ext.figures.line_panel import Panel, Series, SideBySide
from catapult_ext.figures.phase_plane import PlanePicture

Row = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """One statement of the paper, put to the test.

    Attributes:
        name: short and unique within the experiment.
        predicted: the statement.
        measured: what was found, with numbers.
        holds: True, False, or None where this run could not decide.
        why: the likely reason where it does not hold or could not be decided; dropped where it
            holds.
        on: what data, net and loss it was put to the test with; ``reproduce`` fills it in.
    """

    name: str
    predicted: str
    measured: str
    holds: bool | None
    why: str
    on: str = ""

    def __post_init__(self) -> None:
        if self.holds:
            object.__setattr__(self, "why", "")


@dataclass(frozen=True)
class Outcome:
    """Result of one experiment; ``tables`` and ``panels`` by their names."""

    claims: list[Claim]
    tables: dict[str, list[Row]]
    panels: Mapping[str, Panel | SideBySide | PlanePicture]
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """How many claims hold, in one sentence."""
        held = sum(c.holds is True for c in self.claims)
        failed = sum(c.holds is False for c in self.claims)
        open_ = len(self.claims) - held - failed
        text = f"{held} of {len(self.claims)} claims hold"
        return (
            text
            + (f", {failed} do not" if failed else "")
            + (f", {open_} could not be decided" if open_ else "")
        )


@dataclass(frozen=True)
class Experiment:
    """One experiment: ``run(settings, context)`` gives its :class:`Outcome`.

    ``usual``: data and loss of an experiment that has no setting for them.
    """

    name: str
    title: str
    source: str
    settings: dict[str, Any]
    run: Callable[[Any, Any], Outcome]
    usual: Mapping[str, Any] = field(default_factory=dict)


def described(experiment: Experiment, settings: Any) -> str:
    """Data, net, loss and seeds of a run in one line, as claims and pictures state them.

    Settings with an attribute ``described`` say it themselves.
    """
    if hasattr(settings, "described"):
        return settings.described
    held = dict(experiment.usual) | dataclasses.asdict(settings)
    forms = {
        "data": "{}",
        "train": "{} samples",
        "model": "{}",
        "width": "width {}",
        "widths": "width {}",
        "depth": "{} hidden layers",
        "depths": "{} hidden layers",
        "activation": "{}",
        "loss": "{}",
        "losses": "{}",
        "batch": "batch {}",
        "seeds": "{} seeds",
    }
    parts = [
        form.format(_text(held[name])) for name, form in forms.items() if held.get(name) is not None
    ]
    return ", ".join(parts)


MOST_NAMED = 6  # values of a setting; of more the first and the last


def _text(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > MOST_NAMED:
        return f"{_text(value[0])} to {_text(value[-1])}"
    if isinstance(value, tuple):
        return " and ".join(map(_text, value))
    return Path(value).name if isinstance(value, str) else f"{value:g}"


@dataclass(frozen=True, repr=False)
class Reproduction(Shown):
    """A finished experiment: outcome, settings, device, run folder and data folder, if any.

    ``standardise``: of the inputs, where it is not the experiment's own way.
    """

    experiment: Experiment
    scale: str
    settings: Any
    outcome: Outcome
    path: Path | None
    device: str = "cpu"
    data_folder: Path | None = None
    standardise: str | None = None

    def _line(self) -> str:
        place = "" if self.path is None else f", kept in {self.path}"
        return f"{self.experiment.name} at scale {self.scale}: {self.outcome.verdict}{place}"

    def _table(self) -> list[dict[str, Any]]:
        return [asdict(claim) for claim in self.outcome.claims]


def line(label: str, rows: Iterable[Row], key: str, x: str = "c", style: str = "o-") -> Series:
    """A column of a table against another one; rows without a value are left out.

    Where the table has the column's standard errors, ``KEY_se``, they become error bars.
    """
    kept = [row for row in rows if row[key] is not None]
    error = [row.get(f"{key}_se") or 0.0 for row in kept]
    bars = error if any(f"{key}_se" in row for row in kept) else None
    return Series(label, [row[x] for row in kept], [row[key] for row in kept], bars, style)


def averages(columns: Mapping[str, Iterable[float | None]]) -> Row:
    """The mean of every column, with its standard error under ``NAME_se``."""
    row: Row = {}
    for name, values in columns.items():
        held = list(values)
        row |= {name: mean(held), f"{name}_se": standard_error(held)}
    return row


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there, None if none is."""
    kept = [v for v in values if v is not None and math.isfinite(v)]
    return sum(kept) / len(kept) if kept else None


def standard_error(values: Iterable[float | None]) -> float | None:
    """Standard error of the mean; None for fewer than two values."""
    kept = [v for v in values if v is not None and math.isfinite(v)]
    if len(kept) < 2:
        return None
    middle = sum(kept) / len(kept)
    return math.sqrt(sum((v - middle) ** 2 for v in kept) / (len(kept) - 1) / len(kept))


def median(values: Sequence[float]) -> float:
    """Median; the mean of the two middle ones of an even number."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def show(value: float | None, form: str = ".3g") -> str:
    """A number as text; a dash for None."""
    return "-" if value is None else format(value, form)


def with_error(value: float | None, error: float | None, form: str = ".3g") -> str:
    """``value +- error``, or the value alone."""
    return show(value, form) + ("" if error is None else f" +- {error:.2g}")


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's r; None for fewer than three points or a constant."""
    n = len(x)
    if n < 3:
        return None
    mx, my = sum(x) / n, sum(y) / n
    sx = sum((a - mx) ** 2 for a in x)
    sy = sum((b - my) ** 2 for b in y)
    if sx == 0 or sy == 0:
        return None
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / math.sqrt(sx * sy)


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float | None]:
    """Least-squares slope of y against x and its standard error (None for two points)."""
    n = len(x)
    mx, my = sum(x) / n, sum(y) / n
    sx = sum((a - mx) ** 2 for a in x)
    b = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True)) / sx
    if n < 3:
        return b, None
    rest = sum((q - my - b * (p - mx)) ** 2 for p, q in zip(x, y, strict=True))
    return b, math.sqrt(rest / (n - 2) / sx)
