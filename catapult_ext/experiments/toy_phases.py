"""The phases of the toy model: a two-layer linear network of any width, at many learning rates."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._store import RunFolder, environment
from catapult_ext.data.prepare import random_state
from catapult_ext.figures.style import require_matplotlib
from catapult_ext.figures.sweep import toy_figures
from catapult_ext.probes import Verdict
from catapult_ext.runs import report
from catapult_ext.toy import Trajectory, simulate

TITLE = "The toy model: f(x) = v.Ux / sqrt(width)"


@dataclass(frozen=True)
class ToyConfig:
    """Settings of the toy experiment.

    Attributes:
        c: learning rates in units of 1 / lambda_0.
        width: hidden units W; the exact reduced form costs the same at any width.
        samples: N inputs, normal around a common mean, so that one kernel direction dominates.
        in_features: their dimension D.
        steps: gradient steps.
        seed: seed of data and weights.

    Examples:
        >>> from catapult_ext.experiments import ToyConfig
        >>> ToyConfig(c=(0.5, 2.5)).width
        1000000
    """

    c: tuple[float, ...] = (0.5, 1.0, 1.5, 1.9, 2.1, 2.3, 2.6, 3.0, 3.3, 3.6, 3.9, 4.1, 4.5, 6.0)
    width: int = 10**6
    samples: int = 20
    in_features: int = 5
    steps: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "in_features", "steps"):
            v.require(getattr(self, name) >= 1, "toy", f"{name} must be >= 1", getattr(self, name))
        v.require(len(set(self.c)) == len(self.c) > 0, "toy", "c must hold distinct rates", self.c)


@dataclass(frozen=True)
class ToyResult:
    """Trajectories of the toy model and what they show.

    Attributes:
        config: the settings.
        trajectory: as ``toy.simulate`` returns it, rates ascending.
        summary: one row per rate and the largest stable c (summary.json).
        path: the run folder, or None.

    Examples:
        >>> from catapult_ext.experiments import ToyConfig, run_toy
        >>> result = run_toy(ToyConfig(c=(0.5,), width=1000, steps=20))
        >>> bool(result.trajectory.loss[0, -1] < result.trajectory.loss[0, 0])
        True
    """

    config: ToyConfig
    trajectory: Trajectory
    summary: dict[str, Any]
    path: Path | None = None

    def table(self) -> list[dict[str, str]]:
        """The rows as short text."""
        return [_cells(row) for row in self.summary["rates"]]

    def closing(self) -> str:
        """The findings, in one paragraph."""
        s = self.summary
        low, high = s["largest_stable"], s["first_divergent"]
        parts = [
            f"Width {self.config.width:g}: lambda_0 = {s['lambda0']:.4g}, eta_crit = 2/lambda_0 = "
            f"{2 / s['lambda0']:.4g}."
        ]
        if low is not None and high is not None:
            parts.append(
                f"The largest stable c is {low:.4g}, the first divergent one {high:.4g} "
                "(theory: 4)."
            )
        ends = [r["eta_lambda_end"] for r in s["rates"] if r["phase"] == "catapult"]
        if ends:
            claim = "at or below 2" if max(ends) <= 2 else f"up to {max(ends):.3g}, ABOVE 2"
            parts.append(f"In the catapult phase eta*lambda ends {claim}.")
        return " ".join(parts)


def toy_data(config: ToyConfig) -> tuple[Tensor, Tensor]:
    """Inputs (N, D) around a common mean, and labels +-1; float64."""
    rng = random_state("toy", config.seed)
    x = 1.0 + 0.5 * rng.standard_normal((config.samples, config.in_features))
    y = np.where(np.arange(config.samples) % 2 == 0, 1.0, -1.0)
    return torch.from_numpy(x), torch.from_numpy(y)


def run_toy(
    config: ToyConfig | None = None, *, out: Path | str | None = None, fresh: bool = False
) -> ToyResult:
    """Simulate the toy model at every rate, in one native call.

    Args:
        config: settings; default :class:`ToyConfig`.
        out: run folder for config, summary, picture and report, or None.
        fresh: replace an earlier run in that folder.

    Raises:
        ValueError: rates or sizes that are not positive.
        RuntimeError: a run folder that cannot be used, or matplotlib missing with ``out``.

    Examples:
        >>> from catapult_ext.experiments import ToyConfig, run_toy
        >>> result = run_toy(ToyConfig(c=(0.5, 2.5), width=1000, steps=20))
        >>> result.trajectory.loss.shape[0]
        2
    """
    config = config or ToyConfig()
    x, y = toy_data(config)
    trajectory = simulate(
        c=sorted(config.c),
        width=config.width,
        x=x,
        y=y,
        steps=config.steps,
        seed=config.seed,
        curvature_every=1,
    )
    records = [_record(trajectory, i) for i in range(len(config.c))]
    summary = _summary(config, trajectory, records)
    if out is None:
        return ToyResult(config, trajectory, summary)
    require_matplotlib()
    identity = {"experiment": "toy", "version": 1, **dataclasses.asdict(config)}
    with RunFolder(out, identity, environment=environment(), fresh=fresh) as folder:
        result = ToyResult(config, trajectory, summary, folder.path)
        captions = {"toy": "Loss, curvature along the way, and curvature at the end"}
        report.write(folder, TITLE, result, toy_figures(summary, records), captions)
    return result


def _record(t: Trajectory, i: int) -> dict[str, Any]:
    end = int(t.diverged_at[i]) if t.diverged_at[i] >= 0 else t.loss.shape[1]
    return {
        "eta": float(t.eta[i]),
        "diverged_at": int(t.diverged_at[i]),
        "loss": t.loss[i, :end].tolist(),
        "probe_steps": t.curvature_steps[:end].tolist(),
        "lambda": t.curvature[i, :end].tolist(),
    }


def _summary(config: ToyConfig, t: Trajectory, records: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [
        _row(c, record, verdict)
        for c, record, verdict in zip(sorted(config.c), records, t.verdicts, strict=True)
    ]
    gone = [row["c"] for row in rows if row["phase"] == "divergent"]
    stable = [row["c"] for row in rows if row["phase"] != "divergent"]
    return {
        "lambda0": float(t.lambda0[0]),
        "largest_stable": max(stable, default=None),
        "first_divergent": min(gone, default=None),
        "rates": rows,
    }


def _row(c: float, record: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    e, bounded = verdict.evidence, verdict.phase != "divergent"
    return {
        "c": c,
        "eta": record["eta"],
        "phase": verdict.phase,
        "flags": " ".join(verdict.flags),
        "loss_rose_at": e.loss_rose_at,
        "loss_peak": e.loss_peak,
        "loss_peak_at": max(range(len(record["loss"])), key=record["loss"].__getitem__),
        "loss_end": record["loss"][-1] if bounded else None,
        "lambda_end": record["lambda"][-1] if bounded else None,
        "eta_lambda_end": e.eta_lambda_end if bounded else None,
        "diverged_at": e.diverged_at,
    }


def _cells(row: dict[str, Any]) -> dict[str, str]:
    end = report.cell(row["loss_end"])
    return {
        "c": report.cell(row["c"], "{:.4g}"),
        "eta": report.cell(row["eta"], "{:.4g}"),
        "phase": report.phase_cell(row),
        "loss peak": f"x{row['loss_peak']:.3g}" if row["loss_rose_at"] is not None else "",
        "peak at": str(row["loss_peak_at"]) if row["loss_rose_at"] is not None else "",
        "loss end": end or f"step {row['diverged_at']}: out",
        "lambda end": report.cell(row["lambda_end"]),
        "eta*lam. end": report.cell(row["eta_lambda_end"]),
    }
