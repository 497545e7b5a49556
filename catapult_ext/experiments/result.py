"""Result of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catapult_ext.experiments.summary import closing, verdict_of
from catapult_ext.experiments.sweep_config import SweepConfig
from catapult_ext.figures.drawn import Drawn
from catapult_ext.figures.sweep import overview
from catapult_ext.probes import Verdict
from catapult_ext.runs.report import cell, phase_cell


@dataclass(frozen=True, repr=False)
class SweepResult(Drawn):
    """Measurements and findings of a sweep; one entry per learning rate, ascending.

    Attributes:
        config: the sweep's settings.
        summary: thresholds and one row per rate (summary.json).
        records: curves of every rate: ``loss``, ``projection``, ``growth`` per step; ``lambda``,
            ``test_accuracy``, ``weight_norm``, ... at ``probe_steps``.
        linearised: curves of the model linearised at its start, if requested.
        path: the run folder, or None.

    Examples:
        >>> data = torch.randn(8, 3), torch.randn(8, 1)
        >>> result = cx.sweep(nn.Linear(3, 1), data, c=[0.5], steps=4)
        >>> [round(record["c"], 6) for record in result.records]
        [0.5]
    """

    config: SweepConfig
    summary: dict[str, Any]
    records: list[dict[str, Any]]
    linearised: list[dict[str, Any]] | None = None
    path: Path | None = None

    @property
    def lambda0(self) -> float:
        """Top GGN eigenvalue of the loss at the start."""
        return self.summary["lambda0"]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per rate (summary.csv)."""
        return self.summary["rates"]

    @property
    def c(self) -> list[float]:
        """Learning rates times lambda_0."""
        return [row["c"] for row in self.rows]

    @property
    def eta(self) -> list[float]:
        """Learning rates."""
        return [row["eta"] for row in self.rows]

    @property
    def phases(self) -> list[str]:
        """``lazy``, ``flat``, ``catapult`` or ``divergent``, per rate."""
        return [row["phase"] for row in self.rows]

    @property
    def verdicts(self) -> list[Verdict]:
        """Phase, flags and evidence, per rate."""
        return [verdict_of(record, self.summary["initial"]) for record in self.records]

    def table(self) -> list[dict[str, str]]:
        """The rows as short text, for people."""
        return [_cells(row) for row in self.rows]

    def closing(self) -> str:
        """The findings, in one paragraph."""
        return closing(self.summary)

    def _figure(self) -> Any:
        """Overview of the sweep."""
        return overview(self.summary, self.records)

    def _line(self) -> str:
        counts = {phase: self.phases.count(phase) for phase in dict.fromkeys(self.phases)}
        kinds = ", ".join(f"{count} {phase}" for phase, count in counts.items())
        place = "" if self.path is None else f", kept in {self.path}"
        return f"sweep of {len(self.c)} learning rates, lambda_0 {self.lambda0:.4g}: {kinds}{place}"

    def _table(self) -> list[dict[str, Any]]:
        return self.rows


def _cells(row: dict[str, Any]) -> dict[str, str]:
    rose = "" if row["loss_rose_at"] is None else f"x{row['loss_peak']:.3g}"
    cells = {
        "c": cell(row["c"], "{:.4g}"),
        "eta": cell(row["eta"], "{:.4g}"),
        "phase": phase_cell(row),
        "proj. growth": cell(row["projection_peak"], "x{:.3g}"),
        "loss peak": rose,
        "loss end": cell(row["loss_end"]),
        "lambda end": cell(row["lambda_end"]),
        "eta*lam. end": cell(row["eta_lambda_end"], "{:.2f}"),
        "train acc.": cell(row["train_accuracy"], "{:.1%}"),
        "test acc.": cell(row["test_accuracy"], "{:.1%}"),
        "inactive": cell(row["inactive"], "{:.0%}"),
        "|theta|": cell(row["weight_norm_end"], "{:.4g}"),
    }
    if row["phase"] == "divergent":
        cells["loss end"] = f"step {row['diverged_at']}: out"
    if "linearised_projection_peak" in row:
        out = row["linearised_diverged_at"]
        grown = cell(row["linearised_projection_peak"], "x{:.3g}")
        cells["linearised growth"] = grown if out is None else f"step {out}: out"
    return cells
