"""Result of a sweep of several models of one architecture, such as one network with many seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catapult_ext.experiments.result import SweepResult
from catapult_ext.figures.drawn import Drawn
from catapult_ext.figures.sweep import overview
from catapult_ext.figures.sweep_seeds import seeds_overview

Row = dict[str, Any]


@dataclass(frozen=True, repr=False)
class SeedSweeps(Drawn):
    """The sweeps of several models of one architecture; ``found[i]`` is that of model i.

    ``plot(seed=None)`` draws all models together, or the sweep of the model numbered ``seed``.

    Attributes:
        sweeps: a :class:`SweepResult` for each model, in the order of the models.
        first_seed: number of the first model in tables, pictures and file names.

    Examples:
        >>> nets = [nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1)) for _ in range(2)]
        >>> found = cx.sweep(nets, (torch.randn(8, 3), torch.randn(8, 1)), c=[0.5, 1.0], steps=4)
        >>> [(row["seed"], row["c"]) for row in found.rows]
        [(0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0)]
        >>> [(row["c"], row["phase"]) for row in found.by_rate()]
        [('0.5', 'lazy 2'), ('1', 'lazy 2')]
    """

    sweeps: list[SweepResult]
    first_seed: int = 0

    def __len__(self) -> int:
        return len(self.sweeps)

    def __getitem__(self, index: int) -> SweepResult:
        return self.sweeps[index]

    def __iter__(self) -> Iterator[SweepResult]:
        return iter(self.sweeps)

    @property
    def path(self) -> Path | None:
        """The run folder, or None."""
        return self.sweeps[0].path

    @property
    def rows(self) -> list[Row]:
        """One dictionary per seed and rate (summary.csv): ``seed``, the model's number, first."""
        return [{"seed": seed, **row} for seed, one in self._numbered() for row in one.rows]

    @property
    def summary(self) -> Row:
        """``seeds``, the summary of each sweep, and ``rates``, all rows (summary.json)."""
        return {"seeds": [one.summary for one in self.sweeps], "rates": self.rows}

    @property
    def phases(self) -> list[list[str]]:
        """:attr:`SweepResult.phases` of every seed."""
        return [one.phases for one in self.sweeps]

    def table(self) -> list[dict[str, str]]:
        """The rows as short text, for people."""
        return [{"seed": str(seed), **row} for seed, one in self._numbered() for row in one.table()]

    def by_rate(self) -> list[dict[str, str]]:
        """One row of short text per learning rate, over all seeds.

        ``0.2..0.4`` is the range from the lowest to the highest value, over the seeds where the
        number is known: a divergent run has no loss and no curvature at its end.
        """
        return [_over_seeds(rows) for rows in zip(*(one.rows for one in self.sweeps), strict=True)]

    def closing(self) -> str:
        """The findings over all seeds, in one paragraph; ``found[i].closing()`` is that of one."""
        found = [one.summary for one in self.sweeps]
        said = [
            f"Over {len(found)} seeds, lambda_0 = {_range([s['lambda0'] for s in found])} and "
            f"eta_crit = 2/lambda_0 = {_range([s['eta_crit'] for s in found])}."
        ]
        for key, text in (
            ("c_proj", "The residual's projection on the top eigenspace first grows at c ="),
            ("c_loss", "The loss first rises at c ="),
            ("largest_stable", "The largest stable c is"),
        ):
            marks = [s[key]["c"] for s in found if s[key]]
            if marks:
                few = "" if len(marks) == len(found) else f" (of {len(marks)} seeds)"
                said.append(f"{text} {_range(marks)}{few}.")
        held = [s["catapult_bound_holds"] for s in found if s["catapult_bound_holds"] is not None]
        if held:
            said.append(
                f"Throughout the catapult phase, eta*lambda at the end stays at or below 2 for "
                f"{sum(held)} of {len(held)} seeds with catapults."
            )
        return " ".join(said)

    def _numbered(self) -> Iterator[tuple[int, SweepResult]]:
        return enumerate(self.sweeps, self.first_seed)

    def _figure(self, seed: int | None = None) -> Any:
        """All seeds in one picture, or the overview of one."""
        if seed is None:
            return seeds_overview([one.summary for one in self.sweeps])
        one = dict(self._numbered())[seed]
        return overview(one.summary, one.records)

    def _line(self) -> str:
        place = "" if self.path is None else f", kept in {self.path}"
        return f"sweeps of {len(self)} models at {len(self.sweeps[0].c)} learning rates{place}"

    def _table(self) -> list[Row]:
        return self.rows


def _range(values: Sequence[float | None], form: str = "{:.4g}", to: str = " to ") -> str:
    """The lowest and the highest of the known values as text; one number where they look equal."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = form.format(min(known)), form.format(max(known))
    return low if low == high else f"{low}{to}{high}"


def _over_seeds(rows: Sequence[Row]) -> dict[str, str]:
    """The rows of one learning rate as one row of text."""
    phases = Counter(row["phase"] for row in rows).most_common()

    def cell(key: str, form: str = "{:.2g}") -> str:
        return _range([row[key] for row in rows], form, "..")

    return {
        "c": cell("c", "{:.4g}"),
        "eta": cell("eta", "{:.3g}"),
        "phase": ", ".join(f"{phase} {count}" for phase, count in phases),
        "proj. growth": cell("projection_peak"),
        "loss peak": cell("loss_peak"),
        "loss end": cell("loss_end"),
        "lambda end": cell("lambda_end"),
        "eta*lam. end": cell("eta_lambda_end"),
        "train acc.": cell("train_accuracy", "{:.0%}"),
        "test acc.": cell("test_accuracy", "{:.0%}"),
    }
