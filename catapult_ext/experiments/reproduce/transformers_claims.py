"""Claims that the runs of small transformers decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catapult_ext.experiments.reproduce.brackets import Bracket, brackets, listed
from catapult_ext.experiments.reproduce.edge_claims import LONG
from catapult_ext.experiments.reproduce.grid import last
from catapult_ext.experiments.reproduce.outcome import Claim, Row
from catapult_ext.probes.phases import is_dead

Runs = list[dict[str, Any]]
NEAR = 0.1  # "zeta is 1": its median is so close
SEEDS = 2  # fewer decide nothing


def works(record: dict[str, Any]) -> bool:
    """The run neither diverged nor left a dead layer, and ends with a lower loss."""
    end = last(record, "train_loss")
    return end is not None and end < record["loss0"] and not is_dead(last(record, "worst_inactive"))


def claims(
    net: str,
    kept: Mapping[tuple[str, str], Runs],
    edges: list[Row],
    thresholds: Mapping[str, float | None],
) -> list[Claim]:
    """All claims about one net."""
    runs = {name: held for (of, name), held in kept.items() if of == net}
    found = []
    if "gd" in runs:
        found += [claim_lazy(net, runs["gd"]), claim_catapult(net, runs["gd"])]
    for name, edge in thresholds.items():
        if name in runs and edge is not None:
            found.append(claim_beyond(net, name, runs[name], edge))
    if "adam" in runs and "adamw" in runs:
        found.append(claim_decay(net, runs["adam"], runs["adamw"]))
    return [*found, claim_edge(net, [r for r in edges if r["net"] == net])]


def claim_lazy(net: str, runs: Runs) -> Claim:
    """Gradient descent below 2/lambda_0 never raises the loss above its start."""
    lazy = [r for r in runs if r["c"] < 2]
    rose = [r["c"] for r in lazy if r["rose_at"] >= 0 or r["diverged_at"] >= 0]
    return Claim(
        f"no rise below 2/lambda_0, {net}",
        "gradient descent with c < 2: the loss never exceeds its start",
        f"it rose in {len(rose)} of {len(lazy)} runs",
        not rose if lazy else None,
        "the curvature grows faster than the loss falls" if lazy else "no rate below 2",
    )


def claim_catapult(net: str, runs: Runs) -> Claim:
    """At some rate the loss rises above its start and ends below it."""
    above = [r for r in runs if r["c"] > 2]
    seeds = {r["seed"] for r in above}
    caught = {r["seed"] for r in above if r["rose_at"] >= 0 and works(r)}
    rates = sorted({r["c"] for r in above if r["rose_at"] >= 0 and works(r)})
    few = len(seeds) < SEEDS
    return Claim(
        f"a catapult, {net}",
        "gradient descent: at some rate above 2/lambda_0 the loss first rises above its start and "
        "then ends below it",
        f"for {len(caught)} of {len(seeds)} seeds, at c = "
        + (", ".join(f"{c:g}" for c in rates) or "none"),
        None if few else len(caught) == len(seeds),
        f"fewer than {SEEDS} seeds above 2"
        if few
        else "between rates without a rise and lost runs the grid is too coarse, or there is none",
    )


def _inside(found: list[Bracket], edge: float) -> bool | None:
    """Whether every seed works up to ``edge``; None where the grid cannot tell."""
    if len(found) < SEEDS:
        return None
    if all(b.stable >= edge for b in found):
        return True
    return False if any(b.lost is not None and b.lost <= edge for b in found) else None


def claim_beyond(net: str, name: str, runs: Runs, edge: float) -> Claim:
    """Claim: the largest working rate is above the threshold of a quadratic."""
    found = brackets(runs, works)
    return Claim(
        f"{name} works beyond its edge, {net}",
        f"{name}: training works up to rates above {edge:g}/lambda_0, the edge of a quadratic",
        f"c from the last that works to the first that does not, by seeds: {listed(found)}",
        _inside(found, edge),
        f"the rates lie too far apart around {edge:g}, or there are fewer than {SEEDS} seeds"
        if _inside(found, edge) is None
        else "the curvature grows in the first steps",
    )


def claim_decay(net: str, adam: Runs, adamw: Runs) -> Claim:
    """Adam and AdamW have the same largest working rate, to a step of the grid."""
    one, two = brackets(adam, works), brackets(adamw, works)
    rates = sorted({r["c"] for r in adam})
    few = len(one) < SEEDS or any(b.lost is None for b in [*one, *two])
    place = {0.0: -1} | {rate: i for i, rate in enumerate(rates)}
    apart = [abs(place[a.stable] - place[b.stable]) for a, b in zip(one, two, strict=True)]
    return Claim(
        f"decoupled decay moves no boundary, {net}",
        "the largest working rates of Adam and AdamW differ by at most one step of the grid",
        f"adam {listed(one)}; adamw {listed(two)}",
        None if few else max(apart) <= 1,
        f"fewer than {SEEDS} seeds, or the largest rate works" if few else "chance of few seeds",
    )


def claim_edge(net: str, edges: list[Row]) -> Claim:
    """Near the edge the realized edge zeta is 1, whatever the optimizer."""
    held = [r for r in edges if r["readings"] >= LONG and not r["diverged"]]
    off = [r["optimizer"] for r in held if abs(r["zeta"] - 1) > NEAR]
    text = ", ".join(f"{r['optimizer']} {r['chi']:.2f} {r['zeta']:.3f}" for r in held)
    return Claim(
        f"realized edge, {net}",
        f"near the edge the median of zeta is within {NEAR:g} of 1 for every optimizer",
        f"chi and zeta: {text}" if held else f"no run with {LONG} readings near its edge",
        not off if held else None,
        "runs that fit their data leave the edge again" if held else "the edge was not reached",
    )
