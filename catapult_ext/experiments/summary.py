"""Summary of a sweep: one row per learning rate, the thresholds, and a paragraph of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from catapult_ext.probes import Verdict, classify

Record = dict[str, Any]


def verdict_of(record: Record, initial: Record) -> Verdict:
    """Phase of a stored run, with the facts of its start."""
    ends = {name: (record.get(name) or [None])[-1] for name in ("lambda", "worst_inactive")}
    return classify(
        record["eta"],
        initial["lambda0"],
        record["loss"] or [float("inf")],
        growth=record["growth"] or None,
        lambda_end=ends["lambda"],
        diverged_at=record["diverged_at"],
        inactive=ends["worst_inactive"],
        c=record["c"],
        squared=initial.get("squared", True),
    )


def row_of(record: Record, initial: Record, linear: Record | None) -> Record:
    """One line of the table; None where there is nothing to say."""
    verdict = verdict_of(record, initial)
    e = verdict.evidence
    diverged = verdict.phase == "divergent"
    row: Record = {
        "c": e.c,
        "eta": record["eta"],
        "phase": verdict.phase,
        "flags": " ".join(verdict.flags),
        "projection_grew_at": e.projection_grew_at,
        "projection_peak": e.projection_peak,
        "loss_rose_at": e.loss_rose_at,
        "loss_start": record["loss"][0] if record["loss"] else None,
        "loss_peak": e.loss_peak,
        "loss_end": None if diverged else record["loss"][-1],
        "lambda_end": None if diverged or not record["lambda"] else record["lambda"][-1],
        "eta_lambda_end": None if diverged else e.eta_lambda_end,
        "diverged_at": e.diverged_at,
    }
    for name in ("train_accuracy", "test_accuracy", "test_loss", "inactive", "dead_units"):
        values = record[name]
        row[name] = None if diverged or not values else values[-1]
    norms = record["weight_norm"]
    row["weight_norm_end"] = None if diverged or not norms else norms[-1]
    if linear is not None:
        start = initial["lambda0"]
        linear_e = classify(record["eta"], start, linear["loss"], growth=linear["growth"])
        row["linearised_projection_peak"] = linear_e.evidence.projection_peak
        row["linearised_diverged_at"] = (
            linear["diverged_at"] if linear["diverged_at"] >= 0 else None
        )
    return row


def threshold(rows: list[Record], passed: Callable[[Record], bool]) -> Record | None:
    """First rate that passes, with the rate below it: the truth lies between; None if none does."""
    for i, row in enumerate(rows):
        if passed(row):
            below = rows[i - 1]["c"] if i else None
            gap = None if below is None else row["c"] - below
            return {"c": row["c"], "below": below, "uncertainty": gap}
    return None


def _largest_stable(rows: list[Record]) -> Record | None:
    stable = [i for i, row in enumerate(rows) if _stable(row)]
    if not stable:
        return None
    last = stable[-1]
    above = rows[last + 1]["c"] if last + 1 < len(rows) else None
    gap = None if above is None else above - rows[last]["c"]
    return {"c": rows[last]["c"], "above": above, "uncertainty": gap}


def _stable(row: Record) -> bool:
    return row["phase"] != "divergent" and "dead" not in row["flags"].split()


def _best(rows: list[Record]) -> Record | None:
    """Best rate by test accuracy, else test loss, else training loss, among the stable ones."""
    for key, sign in (("test_accuracy", 1), ("test_loss", -1), ("loss_end", -1)):
        scored = [row for row in rows if _stable(row) and row[key] is not None]
        if scored:
            best = max(scored, key=lambda row: sign * row[key])
            return {"c": best["c"], "phase": best["phase"], "by": key, "value": best[key]}
    return None


def summarise(
    initial: Record, records: list[Record], linearised: list[Record] | None, steps: int
) -> Record:
    """Everything a sweep found, as JSON values without times.

    Args:
        initial: ``lambda0`` and the other facts of the starting point.
        records: of all rates, ascending, as :func:`~experiments.training.descend` returns them.
        linearised: the same rates for the linearised model, or None.
        steps: gradient steps of every run.
    """
    lambda0 = initial["lambda0"]
    linear: Sequence[Record | None] = linearised or [None] * len(records)
    rows = [row_of(r, initial, s) for r, s in zip(records, linear, strict=True)]
    settled = [row for row in rows if _stable(row) and row["lambda_end"] is not None]
    flattest = min(settled, key=lambda row: row["lambda_end"], default=None)
    catapults = [row for row in rows if row["phase"] == "catapult" and _stable(row)]
    ends = [row["eta_lambda_end"] for row in catapults if row["eta_lambda_end"] is not None]
    return {
        "steps": steps,
        "lambda0": lambda0,
        "lambda0_error": initial["lambda0_error"],
        "eta_crit": 2 / lambda0,
        "initial": initial,
        "c_proj": threshold(rows, lambda row: row["projection_grew_at"] is not None),
        "c_loss": threshold(rows, lambda row: row["loss_rose_at"] is not None),
        "c_linearised": None
        if linearised is None
        else threshold(rows, lambda row: row["linearised_projection_peak"] > 1 + 1e-6),
        "largest_stable": _largest_stable(rows),
        "first_divergent": threshold(rows, lambda row: row["phase"] == "divergent"),
        "divergent": [row["c"] for row in rows if row["phase"] == "divergent"],
        "flattest": flattest and {k: flattest[k] for k in ("c", "lambda_end", "eta_lambda_end")},
        "best": _best(rows),
        "catapult_bound_holds": all(end <= 2 for end in ends) if ends else None,
        "rates": rows,
    }


def _between(found: Record | None) -> str:
    if found is None:
        return "not reached by these rates"
    if found["below"] is None:
        return f"{found['c']:.4g} or below, the smallest rate"
    return f"{found['c']:.4g} (between {found['below']:.4g} and {found['c']:.4g})"


def closing(summary: Record) -> str:
    """The findings, in one paragraph of plain text."""
    s = summary
    said = [
        f"At the start lambda_0 = {s['lambda0']:.4g}, so eta_crit = 2/lambda_0 = "
        f"{s['eta_crit']:.4g}.",
        f"The loss first rises at c_loss = {_between(s['c_loss'])}.",
    ]
    if any(row["projection_peak"] is not None for row in s["rates"]):
        said[1] = (
            "The residual's projection on the top eigenspace first grows at c_proj = "
            f"{_between(s['c_proj'])}, the loss at c_loss = {_between(s['c_loss'])}."
        )
    if s["c_linearised"] is not None:
        said.append(
            f"Linearised at the start, the net crosses at c = {_between(s['c_linearised'])}."
        )
    if not s["initial"].get("squared", True):
        calm = [row["c"] for row in s["rates"] if row["phase"] == "flat"]
        said.append(
            "2/lambda_0 is a threshold of squared losses; of this loss "
            + (
                f"nothing rises at c = {', '.join(f'{c:.4g}' for c in calm)}"
                if calm
                else "it may be none"
            )
            + ", and a catapult is a run whose loss rises."
        )
    top = s["largest_stable"]
    if top is None:
        said.append("No rate was stable.")
    elif top["above"] is None:
        said.append(f"The largest rate tried, c = {top['c']:.4g}, was still stable.")
    else:
        named = ", ".join(f"{c:.4g}" for c in s["divergent"])
        said.append(
            f"The largest stable c is {top['c']:.4g} (the limit lies between {top['c']:.4g} and "
            f"{top['above']:.4g}); divergent: c = {named or 'none'}."
        )
    if all(row["lambda_end"] is None for row in s["rates"]):
        said.append("No curvature was measured along the runs, so there is no picture of it.")
    if s["catapult_bound_holds"] is not None:
        claim = "stays at or below 2" if s["catapult_bound_holds"] else "does NOT stay below 2"
        said.append(f"Throughout the catapult phase, eta*lambda at the end {claim}.")
    if s["flattest"]:
        said.append(
            f"The flattest end is that of c = {s['flattest']['c']:.4g} "
            f"(lambda = {s['flattest']['lambda_end']:.4g}, "
            f"{s['flattest']['lambda_end'] / s['lambda0']:.2f} lambda_0)."
        )
    if s["best"]:
        names = {
            "test_accuracy": "test accuracy",
            "test_loss": "test loss",
            "loss_end": "training loss",
        }
        b = s["best"]
        value = f"{b['value']:.1%}" if b["by"] == "test_accuracy" else f"{b['value']:.4g}"
        said.append(
            f"After {s['steps']} steps the best {names[b['by']]}, {value}, is at c = "
            f"{b['c']:.4g}, in the {b['phase']} phase (equal steps favour large rates)."
        )
    return " ".join(said)
