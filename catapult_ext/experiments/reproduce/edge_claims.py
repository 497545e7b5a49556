"""Tests of what 2608.18415 says of optimizers at their edge."""

from __future__ import annotations

import itertools

from catapult_ext.experiments.reproduce.outcome import Claim, Row, show

# Pooled medians of chi, table 6 of 2608.18415; where it prints none, the median of its five rates.
PUBLISHED = {
    "gd": 1.124,
    "heavy-ball": 0.949,
    "nesterov": 1.088,
    "adam": 0.960,
    "adamw": 0.971,
    "rmsprop": 1.568,
    "adagrad": 1.845,
}
NEAR = 0.03  # "zeta is 1": its median is so close
LONG = 5  # readings near the edge that make a median
ORDER = 0.8  # Kendall's tau that counts as the same order


def claims(loss: str, runs: list[Row], pooled: list[Row]) -> list[Claim]:
    """The claims about one loss."""
    runs = [r for r in runs if r["loss"] == loss and not r["diverged"] and r["readings"] >= LONG]
    pooled = [r for r in pooled if r["loss"] == loss]
    found = [claim_realized(loss, runs, side) for side in ("above", "below")]
    found += [claim_grows(loss, runs), claim_apart(loss, runs)]
    return [*found, claim_order(pooled)] if loss == "cross_entropy" else found


def claim_realized(loss: str, runs: list[Row], side: str) -> Claim:
    """Zeta is 1 in the runs whose chi lies above, or below, 1."""
    sign = 1 if side == "above" else -1
    off = [r for r in runs if sign * (r["chi"] - 1) > NEAR]
    near = [r for r in off if abs(r["zeta"] - 1) <= NEAR]
    text = f"zeta within {NEAR:g} of 1 in {len(near)} of {len(off)} runs; chi and zeta "
    text += ", ".join(f"{r['optimizer']} {r['chi']:.2f} {r['zeta']:.3f}" for r in off)
    return Claim(
        f"realized edge, chi {side} 1, {loss}",
        f"zeta is 1 also where the median of chi is {side} 1",
        text if off else f"no run with {LONG} readings near its edge and chi {side} 1",
        len(near) == len(off) if off else None,
        "adaptive optimizers publish .919 to .964; runs that fit their data soon leave the edge",
    )


def claim_grows(loss: str, runs: list[Row]) -> Claim:
    """For gradient descent chi grows with the rate."""
    own = sorted((r for r in runs if r["optimizer"] == "gd"), key=lambda r: r["rate"])
    chi = [r["chi"] for r in own]
    return Claim(
        f"chi grows with the rate, {loss}",
        "gradient descent: chi grows over a decade of rates (published: .904 to 1.624)",
        ", ".join(f"{r['rate']:.3g}: {r['chi']:.3f}" for r in own) or "no run near its edge",
        all(a < b for a, b in itertools.pairwise(chi)) if len(chi) > 1 else None,
        "one rate reached the edge" if len(chi) < 2 else "neighbouring rates are not told apart",
    )


def claim_apart(loss: str, runs: list[Row]) -> Claim:
    """Momentum keeps chi nearer to 1 than gradient descent does."""
    highest = {
        name: max((r["chi"] for r in runs if r["optimizer"] == name), default=None)
        for name in ("gd", "heavy-ball")
    }
    gd, ball = highest["gd"], highest["heavy-ball"]
    decided = gd is not None and ball is not None
    return Claim(
        f"heavy ball hovers closer, {loss}",
        "the largest median of chi is nearer to 1 for heavy ball than for gradient descent",
        f"gradient descent {show(gd)}, heavy ball {show(ball)}",
        abs(ball - 1) < abs(gd - 1) if gd is not None and ball is not None else None,
        "the decades of the two need not correspond" if decided else "one of them did not arrive",
    )


def claim_order(pooled: list[Row]) -> Claim:
    """The optimizers' order by pooled chi is the published one."""
    kept = [r for r in pooled if r["readings"] >= LONG and r["published_chi"] is not None]
    tau = kendall([r["chi"] for r in kept], [r["published_chi"] for r in kept])
    decided = len(kept) >= 4 and tau is not None
    text = f"Kendall tau {show(tau)} over {len(kept)} optimizers; "
    text += ", ".join(
        f"{r['optimizer']} {r['chi']:.3f} ({r['published_chi']:g})"
        for r in sorted(kept, key=lambda r: r["published_chi"])
    )
    return Claim(
        "order of the optimizers",
        f"by pooled median of chi they lie in the published order (tau at least {ORDER:g})",
        text,
        tau >= ORDER if decided and tau is not None else None,
        "the lowest three differ by 0.02 in the source; other data, another range of rates"
        if decided
        else "too few optimizers reached their edge",
    )


def kendall(one: list[float], two: list[float]) -> float | None:
    """Kendall's tau-a, concordant less discordant pairs over all; None for fewer than two."""
    pairs = list(itertools.combinations(zip(one, two, strict=True), 2))
    if not pairs:
        return None
    signs = [(a - c) * (b - d) for (a, b), (c, d) in pairs]
    return (sum(s > 0 for s in signs) - sum(s < 0 for s in signs)) / len(pairs)
