"""Claims about the planes of phase-plane."""

from __future__ import annotations

import math
from typing import Any

from catapult_ext.experiments.reproduce.outcome import Claim, Row, mean, show, with_error

Record = dict[str, Any]
WIDE = 64  # hidden units from which on the predictions for wide nets are asked
LOWEST, HIGHEST = 7, 16  # of c_max of three hidden ReLU layers, around the paper's 12


def of(plane: str, records: list[Record], table: list[Row], lines: list[Row]) -> list[Claim]:
    """The claims of one plane."""
    found = [_bound(plane, table)]
    if plane != "batch":
        found.insert(0, _lazy(plane, records))
    if plane == "width":
        found += [_c_max(lines), _peak_grows(table), _best(table)]
    if plane == "depth":
        found.append(_deeper(lines))
    if plane == "batch":
        found.append(_noise(lines))
    if plane == "scale":
        found.append(_scaled(lines))
    return found


def _lazy(plane: str, records: list[Record]) -> Claim:
    runs = [run for r in records for run in r["runs"] if run["c"] < 2]
    rose = [run for run in runs if run["rose_at"] is not None]
    worst = max((run["peak"] for run in rose), default=1.0)
    text = f"it rose in {len(rose)} of {len(runs)} runs (largest peak x{worst:.3g})"
    return Claim(
        f"lazy below 2/lambda_0, by {plane}",
        "for c = eta*lambda_0 < 2 the loss never exceeds its start",
        text,
        not rose if runs else None,
        "finite width moves the threshold" if runs else "no rate below 2",
    )


def _bound(plane: str, table: list[Row]) -> Claim:
    caught = [r for r in table if r["c"] > 2 and r["eta_lambda_end"] is not None]
    over = [r for r in caught if r["eta_lambda_end"] > 2]
    worst = max(caught, key=lambda r: r["eta_lambda_end"], default=None)
    text = f"above 2 in {len(over)} of {len(caught)} cells with c > 2"
    if worst is not None:
        shown = with_error(worst["eta_lambda_end"], worst["eta_lambda_end_se"])
        text += f"; largest {shown} at {plane} {worst['value']:g}, c = {worst['c']:g}"
    return Claim(
        f"lambda <= 2/eta at the end, by {plane}",
        "where training converges at c > 2 the mean of eta*lambda ends at 2 or below",
        text,
        not over if caught else None,
        "runs that have not settled yet or sharpen again"
        if caught
        else "no rate above 2 converged",
    )


def _c_max(lines: list[Row]) -> Claim:
    wide = [r for r in lines if r["value"] >= WIDE and r["c_max"] is not None]
    text = "; ".join(
        f"{with_error(r['c_max'], r['c_max_se'])} at {r['value']:g}" for r in (wide[:1] + wide[-1:])
    )
    inside = [LOWEST <= r["c_max"] <= HIGHEST for r in wide]
    return Claim(
        "c_max of wide ReLU nets",
        f"from width {WIDE} on c_max lies within {LOWEST} to {HIGHEST} (about 12 in the paper)",
        f"within in {sum(inside)} of {len(inside)} rows; {text}" if wide else "no such width",
        all(inside) if wide else None,
        "the boundary is fractal and moves with the grid of rates" if wide else "narrow nets only",
    )


def _peak_grows(table: list[Row]) -> Claim:
    """Compare the narrow with the wide third at the rates in 3 to 8 at which no row diverges."""
    values = sorted({r["value"] for r in table})
    third = max(1, len(values) // 3)
    held = [r for r in table if 3 <= r["c"] <= 8 and r["peak"] is not None]
    narrow = mean(r["peak"] for r in held if r["value"] in values[:third])
    wide = mean(r["peak"] for r in held if r["value"] in values[-third:])
    known = narrow is not None and wide is not None and len(values) > 1
    return Claim(
        "the catapult's peak grows with the width",
        "a wider net must climb higher before its curvature falls (peak loss of order W)",
        f"mean peak over start at c = 3 to 8: x{show(narrow)} in the narrowest third, "
        f"x{show(wide)} in the widest",
        wide > narrow if known and wide is not None and narrow is not None else None,
        "few widths, or peaks close to the start" if known else "no rates between 3 and 8",
    )


def _best(table: list[Row]) -> Claim:
    values = sorted({r["value"] for r in table})
    above = below = 0
    for value in values:
        scored = [r for r in table if r["value"] == value and r["test_accuracy"] is not None]
        scored = [r for r in scored if not r["diverged"]]
        if scored:
            best = max(scored, key=lambda r: r["test_accuracy"])
            above, below = above + (best["c"] > 2), below + (best["c"] < 2)
    return Claim(
        "best accuracy in the catapult phase",
        "at equal steps the best test accuracy lies above c = 2, at every width",
        f"above 2 at {above} of {above + below} widths",
        below == 0 if above + below else None,
        "the task is learnt as well by small rates" if above + below else "no class labels",
    )


def _deeper(lines: list[Row]) -> Claim:
    known = [r for r in lines if r["c_max"] is not None]
    text = "; ".join(f"{with_error(r['c_max'], r['c_max_se'])} with {r['value']:g}" for r in known)
    few = [r["c_max"] for r in known if r["value"] <= 1]
    more = [r["c_max"] for r in known if 3 <= r["value"] <= 4]
    decided = bool(few and more)
    return Claim(
        "deeper ReLU nets stand larger rates",
        "c_max is about 4.5 with one hidden layer and 10 to 15 with three (App. E.4)",
        f"c_max {text} hidden layers" if known else "no stable rate",
        more[0] > 1.5 * few[0] if decided else None,
        "the boundary is fractal" if decided else "depths 1 and 3 are needed",
    )


def _noise(lines: list[Row]) -> Claim:
    return _differs(
        lines,
        "c_max",
        "small batches stand smaller rates",
        "c_max of the smallest batch lies below that of the largest one",
        rises=True,
    )


def _scaled(lines: list[Row]) -> Claim:
    return _differs(
        lines,
        "c_loss",
        "large outputs behave like the linearised net",
        "with a larger output scale the loss rises sooner above 2: c_loss falls towards 2",
        rises=False,
    )


def _differs(lines: list[Row], key: str, name: str, predicted: str, *, rises: bool) -> Claim:
    """Direction of a boundary from the first row to the last, beyond two errors."""
    known = [r for r in lines if r[key] is not None and r[f"{key}_se"] is not None]
    text = "; ".join(f"{with_error(r[key], r[f'{key}_se'])} at {r['value']:g}" for r in known)
    if len(known) < 2:
        return Claim(name, predicted, f"{key} {text or '-'}", None, "fewer than two known rows")
    gap = (known[-1][key] - known[0][key]) * (1 if rises else -1)
    noise = 2 * math.hypot(known[-1][f"{key}_se"], known[0][f"{key}_se"])
    if abs(gap) <= noise:
        why = f"the difference, {abs(gap):.2g}, lies within the seeds' noise ({noise:.2g})"
        return Claim(name, predicted, f"{key} {text}", None, why)
    return Claim(name, predicted, f"{key} {text}", gap > 0, "it goes the other way")
