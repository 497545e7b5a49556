"""The claims that learning rates x seeds of one network decide."""

from __future__ import annotations

import math
from dataclasses import replace

from catapult_ext.experiments.reproduce.brackets import Bracket, brackets, listed, within
from catapult_ext.experiments.reproduce.grid import Record, all_live, last, stable
from catapult_ext.experiments.reproduce.outcome import Claim, Row, mean, median, show, with_error

SQUARED = "squared loss: "  # begins what is said of squared losses alone
STAYS = 0.1  # share of lambda_0 by which a lambda that stays may move
TAKES_OFF = (1.5, 3.5)  # where the loss of a net of finite width begins to rise
C_MAX = (7, 16)  # what "about 12" may be


def claim_lazy(records: list[Record], slack: float = 0.0) -> Claim:
    """Below 2 no seed's loss exceeds its start (by more than the share ``slack``, for SGD)."""
    lazy = [r for r in records if r["c"] < 2]
    worst: dict[float, float] = {}
    for r in lazy:
        peak = math.inf if r["diverged_at"] >= 0 else r["loss_peak"] / r["loss0"]
        if r["diverged_at"] >= 0 or (r["rose_at"] >= 0 and peak > 1 + slack):
            worst[r["c"]] = max(peak, worst.get(r["c"], 0.0))
    named = ", ".join(f"{c:g} (x{peak:.3g})" for c, peak in sorted(worst.items()))
    margin = f" by more than {slack:.0%} (batches differ)" if slack else ""
    rates = len({r["c"] for r in lazy})
    return Claim(
        "lazy below 2/lambda_0",
        f"{SQUARED}for c = eta*lambda_0 < 2 the loss never exceeds its start{margin}",
        f"it rose at c = {named}" if worst else f"it never did, at {rates} rates",
        not worst if lazy else None,
        "finite width or mini-batch noise moves the threshold" if lazy else "no rate below 2",
    )


def claim_stays(records: list[Record]) -> Claim:
    """Below 2 lambda stays where it was: the other half of the lazy phase."""
    lazy = [r for r in records if r["c"] < 2 and stable(r)]
    ratios = {
        c: mean(v / r["lambda0"] for r in lazy if r["c"] == c and (v := last(r, "lambda")))
        for c in sorted({r["c"] for r in lazy})
    }
    known = {c: v for c, v in ratios.items() if v is not None}
    moved = [c for c, v in known.items() if abs(v - 1) > STAYS]
    text = ", ".join(f"{v:.2f} at c = {c:g}" for c, v in known.items())
    return Claim(
        "lambda stays below 2/lambda_0",
        f"{SQUARED}for c < 2 lambda stays within {STAYS:.0%} of lambda_0 (a wide net)",
        f"lambda / lambda_0 at the end: {text or 'not measured'}",
        not moved if known else None,
        "finite width: training lowers lambda at every rate" if known else "no rate below 2",
    )


def claim_rise(records: list[Record]) -> Claim:
    """The loss takes off a little above 2."""
    found = brackets(records, lambda r: r["rose_at"] < 0)
    holds, why = within(found, *TAKES_OFF)
    low, high = TAKES_OFF
    return Claim(
        "loss takes off above 2/lambda_0",
        f"{SQUARED}the largest loss exceeds the initial one from c = 2 on, at finite width a "
        f"little later (between {low:g} and {high:g})",
        f"from the last rate without a rise to the first with one, by seeds: {listed(found)}",
        holds,
        "narrow nets rise later" if holds is False else why,
    )


def claim_c_max(found: list[Bracket], near: tuple[float, float] = C_MAX) -> Claim:
    """The largest stable c is about 12, as far as the grid of rates tells it."""
    holds, why = within(found, *near)
    middle = median([b.stable for b in found])
    return Claim(
        "eta_max of a deep ReLU net",
        f"{SQUARED}the largest stable c is about 12 ({near[0]:g} to {near[1]:g})",
        f"from the last stable to the first lost rate, by seeds: {listed(found)}; "
        f"median of the stable {middle:g}",
        holds,
        why,
    )


def for_loss(claims: list[Claim], records: list[Record]) -> list[Claim]:
    """The claims, with those about squared losses undecided where another one was trained."""
    if all(r.get("squared", True) for r in records):
        return claims
    why = "a statement about squared losses, and this is another one"
    return [
        replace(c, holds=None, why=why) if c.predicted.startswith(SQUARED) else c for c in claims
    ]


def claim_bound(rows: list[Row], key: str = "eta_lambda_end", where: str = "at the end") -> Claim:
    """Test eta * lambda below 2 after the catapult, for every seed that stays alive."""
    caught = [r for r in rows if r["c"] > 2 and r[f"{key}_max"] is not None]
    over = [r for r in caught if r[f"{key}_max"] > 2]
    worst = max((r[f"{key}_max"] for r in caught), default=None)
    found = f"largest eta*lambda {where} over all rates and live seeds: {show(worst)}"
    if over:
        found += "; above 2 at c = " + ", ".join(f"{r['c']:g}" for r in over)
    why = (
        "those runs have not settled yet or sharpen again towards the edge"
        if caught
        else "no rate above 2 ended with a live net"
    )
    return Claim(
        f"lambda <= 2/eta {where}",
        f"{SQUARED}in the catapult phase lambda drops until it is below 2/eta",
        found,
        not over if caught else None,
        why,
    )


def claim_best(
    rows: list[Row],
    largest: float | None,
    mark: str = " after equal steps",
    key: str = "test_accuracy",
) -> Claim:
    """The best test accuracy lies above 2, by more than two standard errors of the difference."""
    name = f"best accuracy{mark}"
    predicted = "the best test accuracy lies in the catapult phase, often near its upper end"
    scored = [r for r in rows if r[key] is not None and all_live(r)]
    if not scored:
        return Claim(name, predicted, "no accuracies", None, "no class labels")
    above = max((r for r in scored if r["c"] > 2), key=lambda r: r[key], default=None)
    below = max((r for r in scored if r["c"] < 2), key=lambda r: r[key], default=None)
    found = [
        f"best {side} 2: {with_error(r[key], r[f'{key}_se'])} at c = {r['c']:g}"
        for side, r in (("above", above), ("below", below))
        if r is not None
    ]
    found += [] if largest is None else [f"largest stable c {largest:g}"]
    text = "; ".join(found)
    if above is None or below is None:
        return Claim(name, predicted, text, None, "rates on one side of 2 only")
    errors = (above[f"{key}_se"], below[f"{key}_se"])
    if None in errors:
        return Claim(name, predicted, text, None, "one seed: no error to compare with")
    gap, noise = above[key] - below[key], 2 * math.hypot(*errors)
    if abs(gap) < noise:
        why = f"the difference, {gap:+.4f}, lies within the seeds' noise ({noise:.4f})"
        return Claim(name, predicted, text, None, why)
    why = "the task is learnt as well by small rates, or the grid is too coarse"
    return Claim(name, predicted, text, gap > 0, why)
