"""Norm and sparsity of ReLU nets in the catapult phase (Meltzer, Chen and Liu, 2301.07737)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from catapult_ext.data import Dataset
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.grid_panels import C_LABEL, ETA_CRIT, LAMBDA, by_c
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Outcome,
    Row,
    averages,
    mean,
    show,
    slope,
)
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.experiments.stacked import StackedDense
from catapult_ext.figures.line_panel import Panel
from catapult_ext.models import fully_connected
from catapult_ext.probes import divergence_cut
from catapult_ext.probes.phases import is_dead
from catapult_ext.toy import quadratic_net

TITLE = "weight norm and activation sparsity in the catapult phase"
SOURCE = (
    "Meltzer, Chen and Liu (2301.07737): the weight norm falls while the loss is large; the share "
    "of negative pre-activations grows with the learning rate"
)

RELU_BOUND = 4.0  # c up to which the source shows that the norm falls, for ReLU
USUAL = {"loss": "half_mse"}


@dataclass(frozen=True)
class Settings:
    """Settings of meltzer-sparsity; two classes with targets -1 and +1, full batch, half MSE.

    Attributes:
        data: name of the data set.
        classes: the two classes.
        train: training samples.
        width: units of each hidden layer.
        depths: hidden layers.
        c: learning rates in units of 1 / lambda_0.
        seeds: number of initialisations.
        steps: gradient steps.
        rank: parameters of the pure quadratic model.
        quadratic_c: its rates.
    """

    data: str = "digits"
    classes: tuple[int, ...] = setting((0, 1), least=0, count=2)
    train: int = 128
    width: int = 512
    depths: tuple[int, ...] = (1, 2)
    c: tuple[float, ...] = (0.5, 1, 1.5, 2.2, 2.6, 3, 3.5, 4, 5, 6, 8, 10, 12)
    seeds: int = 3
    steps: int = 400
    rank: int = 1000
    quadratic_c: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(1, 45))


SETTINGS = {
    "smoke": Settings(
        train=24, width=48, c=(1.0, 3.0, 12.0), seeds=1, steps=30, rank=100,
        quadratic_c=(1.0, 3.0, 4.4),
    ),
    "cpu": Settings(),
    "full": Settings("fashion-mnist", width=1024, seeds=10, steps=2000),
}  # fmt: skip


def run(settings: Settings, context: Context) -> Outcome:
    """All rates of a net as one program, the pure quadratic model, and the claims."""
    s = settings
    signed: dict[str, Any] = {"classes": s.classes, "targets": "signed", "flatten": True}
    data = context.data(s.data, train=s.train, test=0, **signed)

    def net(depth: int, seed: int) -> dict[str, Any]:
        return {"runs": _net(s, data, depth, seed)}

    nets = {
        f"relu_{depth}_s{seed}": functools.partial(net, depth, seed)
        for depth in s.depths
        for seed in range(s.seeds)
    }
    records: list[Row] = [r for part in context.parts(nets) for r in part["runs"]]
    pure = context.parts(
        {f"quadratic_s{seed}": functools.partial(_quadratic, s, seed) for seed in range(s.seeds)}
    )
    rows = [_row(depth, c, records) for depth in s.depths for c in s.c]
    claims = [
        *(_claim_sparsity(depth, records) for depth in s.depths),
        _claim_norm(records),
        _claim_law(records),
        _claim_edge(rows),
        _claim_pure(pure),
    ]
    panels = {
        "sparsity": _panel(s, rows, "inactive", "Negative pre-activations", "share"),
        "norm": _panel(s, rows, "norm_ratio", r"$|\theta|^2$ at the end over the start", "ratio"),
        "curvature": _panel(s, rows, "eta_lambda", r"$\eta\,\lambda$ at the end", LAMBDA),
    }
    notes = [
        "Diverged runs are left out of the means, and dead nets of the claims too; "
        f"{s.steps} steps, {s.seeds} seeds."
    ]
    return Outcome(claims, {"rates": rows}, panels, notes)


def _net(s: Settings, data: Dataset, depth: int, seed: int) -> list[Row]:
    """Every rate of one initialisation, with the weight norm at every step."""
    x, y = data.train
    model = fully_connected(x.shape[1], 1, width=s.width, depth=depth, seed=seed).to(x.device)
    alone = StackedDense([model], x, y)
    lambda0 = alone.top_eigenvalue().item()
    with torch.no_grad():
        loss0 = alone.losses().item()
    stack = StackedDense([model] * len(s.c), x, y)
    eta = torch.tensor(s.c, device=x.device) / lambda0
    cut = torch.full_like(eta, divergence_cut(loss0, s.width, lambda0))
    norms: list[torch.Tensor] = []

    def watch(held: torch.Tensor, weights: list[torch.Tensor]) -> None:
        now = torch.full_like(eta, math.nan)
        now[held] = sum(
            (w.detach().square().sum(dim=(1, 2)) for w in weights), torch.zeros((), device="cpu")
        )
        norms.append(now)

    record = stack.descend(eta, s.steps, cut, watch=watch)
    path = torch.stack(norms, 1).cpu()
    kept = (record.diverged_at < 0).nonzero()[:, 0].tolist()
    with torch.no_grad():
        before = stack.forward()[1:][1][:-1] if kept else []
    shares = [torch.stack([(z[i] <= 0).float().mean() for z in before]) for i in range(len(kept))]
    found = []
    for i, c in enumerate(s.c):
        stable = i in kept
        row: Row = {"depth": depth, "seed": seed, "c": c, "diverged": not stable}
        row |= {"dead": stable and is_dead(float(record.inactive[i]))}
        row |= {"inactive": float(shares[kept.index(i)].mean()) if stable else None}
        row |= {"eta_lambda": float(eta[i] * record.lambda_end[i]) if stable else None}
        row |= {"norm_ratio": float(path[i, -1] / path[i, 0]) if stable else None}
        row |= _falls(path[i], record.loss[i].cpu(), int(record.diverged_at[i]))
        found.append(row)
    return found


def _falls(norm: torch.Tensor, loss: torch.Tensor, diverged_at: int) -> Row:
    """Steps at which the loss is well above its start, and at how many of them the norm falls."""
    last = len(loss) - 1 if diverged_at < 0 else diverged_at
    large = loss[:last] > 10 * loss[0]
    falls = (norm[1 : last + 1] < norm[:last]) & large
    return {"large": int(large.sum()), "falls": int(falls.sum())}


def _quadratic(s: Settings, seed: int) -> dict[str, Any]:
    """Z = (zeta/2) theta' psi theta on one sample x = 1, y = 0, psi diagonal with U(1, 2)."""
    draw = torch.Generator().manual_seed(seed)
    theta = torch.randn(s.rank, generator=draw, dtype=torch.float64, device="cpu")
    psi = 1 + torch.rand(1, s.rank, generator=draw, dtype=torch.float64, device="cpu")
    # Signs of both kinds, so that the output at the start is of order one.
    psi[:, ::2] *= -1
    model = quadratic_net(theta, psi, torch.zeros(1, dtype=torch.float64, device="cpu"))
    lambda0 = float(model.kernel()[0, 0])
    zeta2 = 2 / s.rank
    # Largest c at which every large step lowers |theta|^2: 4 lambda_0 over this upper bound.
    bound = 4 * lambda0 / (zeta2 * float(theta.square().sum()) * float(psi.square().max()))
    stable = []
    for c in s.quadratic_c:
        found = model.run(c / lambda0, s.steps, curvature_every=0, k=1)
        stable.append(found.diverged_at < 0 and bool(found.loss[-1] < 10 * found.loss[0] + 1))
    return {"seed": seed, "lambda0": lambda0, "bound": bound, "c": list(s.quadratic_c)} | {
        "stable": stable
    }


def _row(depth: int, c: float, records: list[Row]) -> Row:
    held = [r for r in records if r["depth"] == depth and r["c"] == c]
    row: Row = {"depth": depth, "c": c, "diverged": sum(r["diverged"] for r in held)}
    row |= {"dead": sum(r["dead"] for r in held)}
    keys = ("inactive", "norm_ratio", "eta_lambda")
    row |= averages({key: [r[key] for r in held] for key in keys})
    worst = [r["eta_lambda"] for r in _live(held)]
    return row | {"eta_lambda_max": max(worst, default=None)}


def _live(records: list[Row]) -> list[Row]:
    """Records of runs that neither diverged nor ended with a dead layer."""
    return [r for r in records if not r["diverged"] and not r["dead"]]


def _claim_sparsity(depth: int, records: list[Row]) -> Claim:
    """Least-squares slopes of the share against ln c, above 2 and below."""
    kept = [r for r in _live(records) if r["depth"] == depth]
    above = [(math.log(r["c"]), r["inactive"]) for r in kept if r["c"] > 2]
    predicted = "beyond c = 2 the share of negative pre-activations grows with the learning rate"
    name = f"sparsity, {depth} hidden"
    if len({x for x, _ in above}) < 2:
        return Claim(name, predicted, "fewer than two live rates above 2", None, "grid")
    b, error = slope([x for x, _ in above], [y for _, y in above])
    lazy = mean(r["inactive"] for r in kept if r["c"] < 2)
    top = max(r["c"] for r in kept)
    highest = mean(r["inactive"] for r in kept if r["c"] == top)
    holds = None if error is None else b > 2 * error  # two points have no error
    return Claim(
        name,
        predicted,
        f"slope against ln c: {b:.3f} +- {show(error, '.2g')}; {show(lazy)} below 2, "
        f"{show(highest)} at c = {top:g}",
        holds,
        "too few live rates, or seeds differ more than rates",
    )


def _claim_norm(records: list[Row]) -> Claim:
    caught = [r for r in _live(records) if r["c"] > 2]
    within = [r for r in caught if r["c"] <= RELU_BOUND]
    fallen = [r for r in within if r["norm_ratio"] < 1]
    worst = max((r["norm_ratio"] for r in within), default=None)
    beyond = [r for r in caught if r["c"] > RELU_BOUND]
    grown = sum(r["norm_ratio"] >= 1 for r in beyond)
    return Claim(
        "the catapult lowers the weight norm",
        "at the end of a catapult with c up to 4, the bound for ReLU, |theta|^2 is below its start",
        f"in {len(fallen)} of {len(within)} runs, largest ratio {show(worst, '.4f')}; beyond 4 it "
        f"grew in {grown} of {len(beyond)}",
        len(fallen) == len(within) if within else None,
        "training moves the norm more than a weak catapult does"
        if within
        else "no run between 2 and 4",
    )


def _claim_law(records: list[Row]) -> Claim:
    caught = [r for r in _live(records) if r["c"] <= RELU_BOUND]
    large, falls = sum(r["large"] for r in caught), sum(r["falls"] for r in caught)
    share = falls / large if large else None
    return Claim(
        "the norm falls while the loss is large",
        "up to c = 4, whenever the loss is large (above ten times its start), a step lowers "
        "|theta|^2",
        f"at {falls} of {large} such steps of the bounded runs",
        None if share is None else share >= 0.95,
        "no such steps" if share is None else "some steps overshoot",
    )


def _claim_edge(rows: list[Row]) -> Claim:
    worst = max(
        (r["eta_lambda_max"] for r in rows if r["eta_lambda_max"] is not None), default=None
    )
    return Claim(
        "eta * lambda ends at or below 2",
        "runs that stay bounded end with eta * lambda <= 2",
        f"largest over all rates, depths and live seeds: {show(worst)}",
        None if worst is None else worst <= 2.02,
        "every run diverged or died" if worst is None else "not settled after these steps",
    )


def _claim_pure(pure: list[dict[str, Any]]) -> Claim:
    below = [ok for p in pure for c, ok in zip(p["c"], p["stable"], strict=True) if c <= p["bound"]]
    ends = [
        max((c for c, ok in zip(p["c"], p["stable"], strict=True) if ok), default=0) for p in pure
    ]
    bounds = ", ".join(f"{p['bound']:.2f}" for p in pure)
    return Claim(
        "pure quadratic model bounded up to c_up",
        "no rate below c_up = 4 lambda_0 / (zeta^2 |theta_0|^2 lambda_max(psi^2)) diverges",
        f"c_up {bounds}; {below.count(False)} rates below it diverge; largest bounded rate "
        + ", ".join(f"{e:g}" for e in ends),
        all(below) if below else None,
        "the bound is of infinite rank: few eigenvalues leave it inexact"
        if below
        else "no rate below it was tried",
    )


def _panel(s: Settings, rows: list[Row], key: str, title: str, ylabel: str) -> Panel:
    series = []
    for depth in s.depths:
        name = f"{depth} hidden layer" + ("s" if depth > 1 else "")
        series.append(by_c(name, [r for r in rows if r["depth"] == depth], key))
    lines = {r"$\lambda = 2/\eta$": 2.0} if key == "eta_lambda" else {}
    return Panel(
        title,
        C_LABEL,
        ylabel,
        series,
        xlog=True,
        ylog=key == "norm_ratio",
        vlines={ETA_CRIT: 2.0},
        hlines=lines,
    )
