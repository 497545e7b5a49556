"""Quadratic models catapult as networks do (Zhu, Liu, Radhakrishnan and Belkin, 2205.11787)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext.experiments.reproduce import gated
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.grid_panels import C_LABEL, ETA_CRIT
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Outcome,
    Row,
    averages,
    line,
    median,
    show,
    slope,
)
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series
from catapult_ext.toy import neural_quadratic

TITLE = "quadratic models beside the net"
SOURCE = (
    "Zhu, Liu, Radhakrishnan and Belkin (2205.11787): the second-order Taylor model of a net "
    "catapults and generalises like the net"
)
USUAL = {"loss": "half squared error summed over samples"}


@dataclass(frozen=True)
class Settings:
    """Settings of quadratic-models; half squared error summed over samples, c = eta * lambda_0.

    Attributes:
        widths: widths of the one-sample neural quadratic models.
        one_c: their rates.
        one_seeds: their initialisations.
        positive: samples of the one-dimensional problem near +2, labels +-1.
        negative: samples near -2.
        pair_width: units of its networks.
        seeds: initialisations of this problem and of the comparison on real data.
        data: two-class data of the comparison.
        classes: the two classes.
        train: training samples.
        test: test samples.
        width: units of the compared networks.
        c: their rates.
        steps: gradient steps.
    """

    widths: tuple[int, ...] = (100, 1000, 10_000)
    one_c: tuple[float, ...] = (1.0, 1.8, 2.4, 2.8, 3.2, 3.6, 4.2, 5.0)
    one_seeds: int = 5
    positive: int = 80
    negative: int = 48
    pair_width: int = 2000
    seeds: int = 3
    data: str = "digits"
    classes: tuple[int, ...] = setting((3, 8), least=0, count=2)
    train: int = 128
    test: int | None = setting(None, least=1)
    width: int = 512
    c: tuple[float, ...] = setting((0.5, 1.0, 1.6, 2.4, 2.8, 3.2, 3.6), some_below=2)
    steps: int = 200


SETTINGS = {
    "smoke": Settings(
        widths=(50, 500), one_c=(1.0, 2.8, 4.4), one_seeds=2, positive=10, negative=6,
        pair_width=200, seeds=1, train=24, test=40, width=64, c=(1.0, 2.8), steps=40,
    ),
    "cpu": Settings(),
    "full": Settings(
        (100, 1000, 10_000, 100_000), one_seeds=20, pair_width=5000, seeds=5,
        data="cifar-10", classes=(0, 2), train=256, test=2000, width=5000,
        steps=2000,
    ),
}  # fmt: skip


def run(settings: Settings, context: Context) -> Outcome:
    """One sample, two directions, real data; then the claims."""
    s = settings
    signed: dict[str, Any] = {"classes": s.classes, "targets": "signed", "flatten": True}
    data = context.data(s.data, train=s.train, test=s.test, **signed)

    def one(width: int) -> dict[str, Any]:
        return {"runs": [r for seed in range(s.one_seeds) for r in _one(s, width, seed)]}

    def pair(seed: int) -> dict[str, Any]:
        return {"runs": _pair(s, seed)}

    def cell(seed: int, c: float) -> dict[str, Any]:
        return {"seed": seed, "c": c, **gated.compare(data, s.width, seed, c, s.steps)}

    single = {f"one_w{width}": functools.partial(one, width) for width in s.widths}
    double = {f"pair_s{seed}": functools.partial(pair, seed) for seed in range(s.seeds)}
    real = {
        f"data_s{seed}_c{c:g}": functools.partial(cell, seed, c)
        for seed in range(s.seeds)
        for c in s.c
    }
    ones = [r for part in context.parts(single) for r in part["runs"]]
    pairs = [r for part in context.parts(double) for r in part["runs"]]
    cells = context.parts(real)
    rows = [_row(c, [x for x in cells if x["c"] == c]) for c in s.c]
    claims = [
        _claim_boundary(ones),
        _claim_peak(s, ones),
        _claim_settled(ones),
        _claim_first(pairs),
        _claim_both(pairs),
        _claim_rest(pairs),
        _claim_below(rows),
        _claim_linear(rows),
        _claim_above(rows),
    ]
    panels = {"peak": _panel_peak(s, ones), "test_loss": _panel_test(rows)}
    notes = [f"Best test loss of {s.steps} steps, {s.seeds} seeds, width {s.width}."]
    return Outcome(claims, {"data": rows, "directions": pairs}, panels, notes)


def _one(s: Settings, width: int, seed: int) -> list[Row]:
    """One sample x = 1, y = 0: the model of the theorem."""
    draw = torch.Generator().manual_seed(seed)
    U = torch.randn(width, 1, generator=draw, dtype=torch.float64, device="cpu")
    v = torch.randint(0, 2, (width,), generator=draw, device="cpu").double() * 2 - 1
    x, y = (
        torch.ones(1, 1, dtype=torch.float64, device="cpu"),
        torch.zeros(1, dtype=torch.float64, device="cpu"),
    )
    model = neural_quadratic(U, v, x, y)
    lambda0 = float(model.kernel()[0, 0])
    found = []
    for c in s.one_c:
        done = model.run(c / lambda0, 200, curvature_every=200, k=1)
        bounded = done.diverged_at < 0
        found.append(
            {
                "width": width,
                "seed": seed,
                "c": c,
                "bounded": bounded,
                "peak": float(done.loss.max()) if bounded else None,
                "loss_end": float(done.loss[-1]),
                "eta_lambda": c / lambda0 * float(done.eigenvalues[-1, 0]) if bounded else None,
            }
        )
    return found


def _pair(s: Settings, seed: int) -> list[Row]:
    """Inputs on a line: the kernel has rank two, one direction for each sign of the input."""
    draw = torch.Generator().manual_seed(seed)
    count = s.positive + s.negative
    signs = torch.cat(
        [torch.ones(s.positive, device="cpu"), -torch.ones(s.negative, device="cpu")]
    ).double()
    x = (2 * signs + torch.randn(count, generator=draw, dtype=torch.float64, device="cpu"))[:, None]
    y = torch.randint(0, 2, (count,), generator=draw, device="cpu").double() * 2 - 1
    U = torch.randn(s.pair_width, 1, generator=draw, dtype=torch.float64, device="cpu")
    v = torch.randint(0, 2, (s.pair_width,), generator=draw, device="cpu").double() * 2 - 1
    model = neural_quadratic(U, v, x, y)
    first, second = torch.linalg.eigvalsh(model.kernel()).flip(0)[:2].tolist()
    edge = 2 * first / second  # c at which the second direction becomes unstable
    found = []
    for where, c in (("between", (2 + min(edge, 4)) / 2), ("above", (edge + 4) / 2)):
        for name, path in (
            ("quadratic", _quadratic_path(model, c / first)),
            ("net", gated.line_path(U, v, x, y, c / first, 300)),
        ):
            found.append({"seed": seed, "edge": edge, "where": where, "c": c, "model": name} | path)
    return found


def _quadratic_path(model: Any, eta: float, steps: int = 300) -> Row:
    done = model.run(eta, steps, curvature_every=steps, k=2)
    start, end = done.eigenvalues[0], done.eigenvalues[-1]
    rest = done.loss - done.projected_loss.sum(dim=1)
    peaks = (done.projected_loss.max(dim=0).values / done.projected_loss[0]).tolist()
    return {"peak_1": peaks[0], "peak_2": peaks[1], "bounded": done.diverged_at < 0} | {
        "ratio_1": float(end[0] / start[0]) if done.diverged_at < 0 else None,
        "rest_change": float((rest - rest[0]).abs().max() / done.loss[0]),
        **_drops(model, done.model),
    }


def _drops(before: Any, after: Any) -> Row:
    """Kernel along the first two eigenvectors of the start, end over start."""
    top = torch.linalg.eigh(before.kernel()).eigenvectors[:, -2:].flip(1)

    def along(model: Any) -> Tensor:
        return ((top.mT @ model.kernel()) * top.mT).sum(dim=1)

    ratio = along(after) / along(before)
    return {"drop_1": float(ratio[0]), "drop_2": float(ratio[1])}


def _row(c: float, cells: list[dict[str, Any]]) -> Row:
    row: Row = {"c": c, "seeds": len(cells)}
    for name in gated.MODELS:
        row |= averages({name: [x[name] for x in cells]})
        row[f"{name}_diverged"] = sum(x[f"{name}_diverged"] for x in cells)
    return row


def _claim_boundary(ones: list[Row]) -> Claim:
    wrong = [r for r in ones if r["bounded"] != (r["c"] < 4)]
    lost = sorted({r["c"] for r in ones if not r["bounded"]})
    both = len({r["c"] < 4 for r in ones}) == 2
    return Claim(
        "eta_max = 4/lambda_0",
        "one sample: every rate below 4/lambda_0 converges, every larger one diverges",
        f"{len(ones) - len(wrong)} of {len(ones)} runs as predicted; diverging c: "
        + (", ".join(f"{c:g}" for c in lost) or "none"),
        not wrong if both else None,
        "narrow models start with curvature and output far from typical"
        if both
        else "rates on one side of 4 only",
    )


def _peak(ones: list[Row], width: int, c: float) -> float | None:
    values = [r["peak"] for r in ones if r["width"] == width and r["c"] == c and r["peak"]]
    return median(values) if values else None


def _claim_peak(s: Settings, ones: list[Row]) -> Claim:
    """Slope of ln peak against ln width at every rate of the catapult phase."""
    found = []
    for c in (c for c in s.one_c if 2 < c < 4):
        points = [(math.log(w), math.log(p)) for w in s.widths if (p := _peak(ones, w, c))]
        if len(points) > 1:
            found.append((c, slope([x for x, _ in points], [y for _, y in points])[0]))
    text = ", ".join(f"{b:.2f} at c = {c:g}" for c, b in found)
    # Between width / log width and width: a slope of about 0.85 to 1 over these widths.
    holds = bool(found) and all(0.8 <= b <= 1.1 for _, b in found)
    return Claim(
        "the peak grows with the width",
        "the loss rises to order width (c - 2)^2 / log width: slope of ln peak against ln width "
        "between 0.8 and 1.1",
        text or "no catapult",
        holds if found else None,
        "" if holds else "the peak is log-periodic in the width, and narrow models peak early",
    )


def _claim_settled(ones: list[Row]) -> Claim:
    kept = [r["eta_lambda"] for r in ones if 2 < r["c"] < 4 and r["bounded"]]
    return Claim(
        "lambda <= 2/eta after the catapult",
        "stable equilibria have loss 0 and lambda below 2/eta",
        f"largest eta*lambda at the end: {show(max(kept, default=None))}",
        all(v <= 2 for v in kept) if kept else None,
        "not settled after these steps" if kept else "no run between 2 and 4 stayed bounded",
    )


def _held(pairs: list[Row], where: str) -> list[Row]:
    return [r for r in pairs if r["where"] == where]


def _describe(rows: list[Row]) -> str:
    return "; ".join(
        f"{r['model']} c = {r['c']:.2f}: loss x{r['peak_1']:.3g} and x{r['peak_2']:.3g}, "
        f"lambda x{r['drop_1']:.2f} and x{r['drop_2']:.2f}"
        for r in rows
        if r["seed"] == 0
    )


def _claim_first(pairs: list[Row]) -> Claim:
    rows = _held(pairs, "between")
    good = [r for r in rows if r["peak_1"] > 1 and r["peak_2"] <= 1.0001]
    good = [r for r in good if r["drop_1"] < 0.9 and r["drop_2"] > 0.95]
    return Claim(
        "one catapult between 2/lambda_1 and 2/lambda_2",
        "only the first direction's loss rises and only lambda_1 falls",
        f"{len(good)} of {len(rows)} runs (net and quadratic model); along p_1 and p_2, "
        + _describe(rows),
        len(good) == len(rows) if rows else None,
        "at finite width the catapult also moves its neighbours" if rows else "no such rate",
    )


def _claim_both(pairs: list[Row]) -> Claim:
    rows = [r for r in _held(pairs, "above") if r["edge"] < 4]
    good = [r for r in rows if r["peak_1"] > 1 and r["peak_2"] > 1 and r["drop_2"] < 0.95]
    return Claim(
        "two catapults above 2/lambda_2",
        "the loss rises in both directions and both eigenvalues fall",
        f"{len(good)} of {len(rows)} runs; along p_1 and p_2, {_describe(rows)}",
        len(good) == len(rows) if rows else None,
        "lambda_2 is less than half of lambda_1: no such rates"
        if not rows
        else ""
        if len(good) == len(rows)
        else "just above its edge the second catapult is weak and lowers lambda_2 little",
    )


def _claim_rest(pairs: list[Row]) -> Claim:
    changes = [r["rest_change"] for r in pairs if r["model"] == "quadratic"]
    worst = max(changes, default=None)
    return Claim(
        "the other directions do not move",
        "in the quadratic model of inputs on a line, p_3, p_4, ... carry a constant loss",
        f"largest change over the initial loss: {show(worst, '.2g')}",
        None if worst is None else worst < 1e-6,
        "rounding, or inputs that do not lie on a line",
    )


def _claim_below(rows: list[Row]) -> Claim:
    lazy = [r for r in rows if r["c"] < 2]
    apart = max(
        (abs(r[n] / r["net"] - 1) for r in lazy for n in ("linear", "quadratic")), default=None
    )
    return Claim(
        "equal below eta_crit",
        "below 2/lambda_0 net, linear and quadratic model reach the same test loss (within 10 %)",
        f"largest relative difference to the net: {show(apart, '.2g')}",
        None if apart is None else apart <= 0.1,
        "no rate below 2" if apart is None else "finite width: features move a little",
    )


def _claim_linear(rows: list[Row]) -> Claim:
    above = [r for r in rows if r["c"] > 2]
    lost, runs = sum(r["linear_diverged"] for r in above), sum(r["seeds"] for r in above)
    return Claim(
        "the linear model diverges above eta_crit",
        "above 2/lambda_0 the linearised net diverges, net and quadratic model do not",
        f"linear: {lost} of {runs}; quadratic: {sum(r['quadratic_diverged'] for r in above)}; "
        f"net: {sum(r['net_diverged'] for r in above)}",
        lost == runs and not any(r["quadratic_diverged"] + r["net_diverged"] for r in above)
        if above
        else None,
        "just above 2 the linear model grows slowly; near 4 the others diverge too"
        if above
        else "no rate above 2",
    )


def _claim_above(rows: list[Row]) -> Claim:
    title = "better above eta_crit"
    predicted = "the best test loss of net and quadratic model is lower in the catapult phase"
    text, holds = [], True
    for name in ("net", "quadratic"):
        kept = [r for r in rows if r[name] is not None]
        if not any(r["c"] < 2 for r in kept):
            return Claim(title, predicted, f"{name}: no rate below 2", None, "grid")
        low = min((r for r in kept if r["c"] < 2), key=lambda r: r[name])
        best = min((r for r in kept if r["c"] > 2), key=lambda r: r[name], default=low)
        holds = holds and best["c"] > 2 and best[name] < low[name]
        text.append(
            f"{name} {best[name]:.4f} at c = {best['c']:g} against {low[name]:.4f} at {low['c']:g}"
        )
    why = "this task is learnt as well without a catapult"
    return Claim(title, predicted, "; ".join(text), holds, why)


def _panel_peak(s: Settings, ones: list[Row]) -> Panel:
    series = []
    for c in (c for c in s.one_c if 2 < c < 4):
        points = [(float(w), p) for w in s.widths if (p := _peak(ones, w, c))]
        series.append(Series(f"c = {c:g}", [x for x, _ in points], [y for _, y in points]))
    return Panel(
        "Peak of the loss, one sample (median of seeds)",
        "width",
        "loss",
        series,
        xlog=True,
        ylog=True,
    )


def _panel_test(rows: list[Row]) -> Panel:
    series = [
        line(name, [r for r in rows if not r[f"{name}_diverged"]], name) for name in gated.MODELS
    ]
    return Panel(
        "Best test loss",
        C_LABEL,
        "half squared error",
        series,
        xlog=True,
        ylog=True,
        vlines={ETA_CRIT: 2.0},
    )
