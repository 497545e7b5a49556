"""Tables and pictures of phase-plane: means over seeds of every cell, and the boundaries."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from catapult_ext.experiments.reproduce.outcome import Row, averages, mean, median
from catapult_ext.figures.phase_plane import PHASES, Boundary, PlanePicture

Record = dict[str, Any]


def cells(records: list[Record]) -> list[Row]:
    """One row per value of the axis and c: means with standard errors over the seeds."""
    found = []
    for value in sorted({r["value"] for r in records}):
        held = [r["runs"] for r in records if r["value"] == value]
        for runs in zip(*held, strict=True):  # the same rate of every seed
            kept = [run for run in runs if run["diverged_at"] < 0]
            row: Row = {
                "value": value,
                "c": runs[0]["c"],
                "phase": _most(
                    ["dead" if "dead" in run["flags"] else run["phase"] for run in runs]
                ),
                "diverged": len(runs) - len(kept),
                "dead": sum("dead" in run["flags"] for run in runs),
                "loss_rose": sum(run["rose_at"] is not None for run in runs),
                "peak": median([run["peak"] for run in kept]) if kept else None,
                **averages({"eta_lambda_end": [run["eta_lambda_end"] for run in kept]}),
                "train_loss": mean(run["train_loss"] for run in kept),
                **averages({"test_accuracy": [run["test_accuracy"] for run in kept]}),
            }
            found.append(row)
    return found


def _most(phases: list[str]) -> str:
    """The phase of most seeds, ``dead`` for inactive nets; of equal numbers the later one."""
    count = Counter(phases)
    return max(PHASES, key=lambda phase: (count[phase], PHASES.index(phase)))


def boundaries(records: list[Record]) -> list[Row]:
    """One row per value of the axis: c_loss and c_max over the seeds, with standard errors."""
    found = []
    for value in sorted({r["value"] for r in records}):
        held = [r for r in records if r["value"] == value]
        row: Row = {
            "value": value,
            "seeds": len(held),
            "lambda0": mean(r["lambda0"] for r in held),
            **averages({"c_loss": [first_rise(r) for r in held]}),
            **averages({"c_max": [largest_stable(r) for r in held]}),
            "c_max_open": sum(r["runs"][-1]["stable"] and all_stable(r) for r in held),
        }
        found.append(row)
    return found


def first_rise(record: Record) -> float | None:
    """The first c whose loss exceeds its start; None where no loss does."""
    return next((run["c"] for run in record["runs"] if run["rose_at"] is not None), None)


def largest_stable(record: Record) -> float | None:
    """The largest c such that this and all smaller rates are stable; None where none is."""
    kept = None
    for run in record["runs"]:
        if not run["stable"]:
            break
        kept = run["c"]
    return kept


def all_stable(record: Record) -> bool:
    """Whether no rate diverged or died."""
    return all(run["stable"] for run in record["runs"])


def picture(title: str, axis: str, table: list[Row], lines: list[Row]) -> PlanePicture:
    """The maps of a plane with c_loss and c_max."""
    c = sorted({row["c"] for row in table})
    values = sorted({row["value"] for row in table})
    at = {(row["value"], row["c"]): row for row in table}

    def grid(key: str) -> list[list[float]]:
        return [[_number(at[value, rate][key]) for rate in c] for value in values]

    accuracy, score = grid("test_accuracy"), "test accuracy"
    if not any(math.isfinite(x) for row in accuracy for x in row):
        accuracy, score = grid("train_loss"), "training loss"
    return PlanePicture(
        title,
        axis,
        c,
        values,
        grid("eta_lambda_end"),
        grid("peak"),
        [[float(PHASES.index(at[value, rate]["phase"])) for rate in c] for value in values],
        accuracy,
        [_line(name, lines) for name in ("c_max", "c_loss")],
        score=score,
    )


def _line(name: str, lines: list[Row]) -> Boundary:
    c = [_number(row[name]) for row in lines]
    return Boundary(f"{name}, mean over seeds", c, [_number(row[f"{name}_se"]) for row in lines])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
