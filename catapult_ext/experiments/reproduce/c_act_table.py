"""The largest stable c for activations and depths (arXiv SM C.4, ICLR App. E.4; theory 2.4)."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch

from catapult_ext import _validate as v
from catapult_ext import models
from catapult_ext.data import Dataset
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Outcome,
    Row,
    line,
    mean,
    median,
    standard_error,
)
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.experiments.stacked import StackedDense
from catapult_ext.figures.line_panel import COLOURS, Panel
from catapult_ext.probes import divergence_cut
from catapult_ext.probes.phases import DEAD_FRACTION, is_dead

TITLE = "largest stable c by activation and depth"
SOURCE = "Lewkowycz et al., SM C.4 (numbers not in the main text); independent runs of the table"

# (activation, hidden layers): lowest and highest value that independent runs found; for one hidden
# layer 0.5 around theirs.
KNOWN = {
    ("linear", 1): (3.5, 4.5),
    ("relu", 1): (4.0, 5.0),
    ("leaky_relu", 1): (4.25, 5.25),
    ("abs", 1): (3.25, 4.25),
    ("tanh", 1): (3.75, 4.75),
    ("gelu", 1): (4.0, 5.0),
    ("softplus", 1): (3.5, 4.5),
    ("linear", 3): (4.5, 5.5),
    ("relu", 3): (10.0, 15.0),
    ("leaky_relu", 3): (5.0, 6.0),
    ("abs", 3): (4.0, 5.0),
    ("tanh", 3): (5.5, 6.5),
    ("gelu", 3): (8.0, 10.0),
    ("softplus", 3): (20.0, math.inf),
    ("relu", 2): (14.0, 16.0),
    ("relu", 4): (10.0, 11.0),
    ("tanh", 2): (5.0, 6.0),
    ("tanh", 4): (5.5, 6.5),
}
SEEDS = 2  # fewer decide nothing
WHY = (
    "the boundary is fractal and shifts with width, samples and above all with the "
    "scale of the weights, which the source of the table does not state"
)
USUAL = {"loss": "half_mse"}


@dataclass(frozen=True)
class Settings:
    """Settings of c-act-table; two classes with targets +-1, one output, loss 1/(2 N) sum.

    Weights have sigma_w^2 = 1 / E phi(z)^2, z ~ N(0, 1), which keeps the signal's variance: 2 for
    ReLU, 1 for linear.

    Attributes:
        activations: names in ``models.ACTIVATIONS``.
        depths: hidden layers.
        data: ``"gaussian"`` inputs with random labels, or a data set whose classes can be chosen.
        classes: the two classes that a two-class data set is made of.
        train: samples.
        in_features: dimension of Gaussian inputs.
        width: units of each hidden layer.
        low: first rate of the scan in units of 1 / lambda_0.
        high: last rate.
        factor: from one rate of the scan to the next.
        refine: rates between the last stable and the first unstable one, in a second scan.
        seeds: number of initialisations (and data sets).
        steps: gradient steps.
    """

    activations: tuple[str, ...] = (
        *("linear", "relu", "leaky_relu", "abs", "tanh", "erf", "gelu", "silu", "softplus"),
    )
    depths: tuple[int, ...] = (1, 3)
    data: str = "gaussian"
    classes: tuple[int, ...] = setting((3, 8), least=0, count=2)
    train: int = 32
    in_features: int = 40
    width: int = 256
    low: float = 2.5
    high: float = 32.0
    factor: float = setting(1.19, above=1)
    refine: int = setting(3, least=0)
    seeds: int = 5
    steps: int = 200


SETTINGS = {
    "smoke": Settings(
        ("linear", "relu", "tanh"),
        train=8,
        in_features=8,
        width=32,
        low=3.0,
        high=24.0,
        factor=2.0,
        refine=0,
        seeds=2,
        steps=30,
    ),
    "cpu": Settings(),
    "real": Settings(
        ("linear", "relu", "tanh", "gelu"),
        data="fashion-mnist",
        classes=(2, 4),
        train=2000,
        factor=1.26,
        refine=1,
        seeds=2,
        steps=60,
    ),
    "full": Settings(
        depths=(1, 2, 3, 4), train=64, in_features=50, width=1024, factor=1.09, seeds=10, steps=400
    ),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Scan every activation and depth, all rates and seeds of one as a single program."""
    s = settings
    cells = context.parts(
        {
            f"{activation}_{depth}": functools.partial(_cell, s, context, activation, depth)
            for activation in s.activations
            for depth in s.depths
        }
    )
    rows = [_row(cell) for cell in cells]
    step = s.factor ** (1 / (s.refine + 1))
    claims = [claim_entry(row, step) for row in rows if (row["activation"], row["depth"]) in KNOWN]
    claims += [claim_strong(rows)]
    inputs = f"Gaussian inputs of dimension {s.in_features}, random labels"
    if s.data != "gaussian":
        inputs = f"classes {s.classes[0]} and {s.classes[1]} of {s.data}"
    notes = [
        f"Largest c such that at it and all smaller rates of the scan the loss stays bounded for "
        f"{s.steps} steps and no layer ends with more than {DEAD_FRACTION:.0%} inactive units; "
        f"{inputs}, N = {s.train}, width {s.width}, {s.seeds} seeds. The known numbers are of "
        "Gaussian inputs. Images do not centre, and nets die on them that would diverge."
    ]
    return Outcome(claims, {"c_act": rows}, {"c_act": _panel(rows, s)}, notes)


def _scan(s: Settings) -> list[float]:
    count = math.floor(math.log(s.high / s.low) / math.log(s.factor) + 1e-9) + 1
    return [s.low * s.factor**i for i in range(count)]


def _cell(s: Settings, context: Context, activation: str, depth: int) -> dict[str, Any]:
    """Last stable and first unstable c of every seed, by a scan and a refinement."""
    problems = [_Problem(s, context, activation, depth, seed) for seed in range(s.seeds)]
    results = _try(problems, [_scan(s)] * s.seeds, s.steps)
    brackets = [_bracket(found) for found in results]
    if s.refine:
        finer = [
            []
            if above is None or below is None
            else [below * (above / below) ** (i / (s.refine + 1)) for i in range(1, s.refine + 1)]
            for below, above in brackets
        ]
        more = _try(problems, finer, s.steps)
        results = [sorted(a + b, key=lambda r: r["c"]) for a, b in zip(results, more, strict=True)]
    return {"activation": activation, "depth": depth, "seeds": [_seed(r) for r in results]}


def preserving_sigma(name: str) -> float:
    """1 / sqrt(E phi(z)^2) for z ~ N(0, 1): the scale that keeps the variance of the signal."""
    z = torch.linspace(-10, 10, 20001, dtype=torch.float64, device="cpu")
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    second = (models.activation(name)(z).square() * density).sum() * (z[1] - z[0])
    return float(second) ** -0.5


def _data(s: Settings, context: Context, seed: int) -> Dataset:
    """The data of a seed: Gaussian inputs of its own, or the same images for all seeds."""
    if s.data == "gaussian":
        return context.data(s.data, train=s.train, in_features=s.in_features, seed=seed)
    signed = {"classes": s.classes, "targets": "signed", "flatten": True}
    return context.data(s.data, train=s.train, test=0, **signed)


class _Problem:
    """One initialisation with its own data."""

    def __init__(self, s: Settings, context: Context, name: str, depth: int, seed: int) -> None:
        self.data: Dataset = _data(s, context, seed)
        self.model = models.fully_connected(
            self.data.x_train.shape[1],
            1,
            width=s.width,
            depth=depth,
            activation_name=name,
            sigma_w=preserving_sigma(name),
            seed=seed,
        ).to(self.data.x_train.device)
        alone = StackedDense([self.model], *self.data.train)
        self.lambda0 = alone.top_eigenvalue().item()
        v.require(self.lambda0 > 0, "reproduce", "lambda_0 must be > 0 (dead units?)", self.lambda0)
        with torch.no_grad():
            loss0 = alone.losses().item()
        self.cut = divergence_cut(loss0, s.width, self.lambda0)


def _try(problems: list[_Problem], cs: list[list[float]], steps: int) -> list[list[Row]]:
    """Every seed at each of its rates; the rates of a seed are one program."""
    results: list[list[Row]] = []
    for problem, rates in zip(problems, cs, strict=True):
        if not rates:
            results.append([])
            continue
        data = problem.data
        stack = StackedDense([problem.model] * len(rates), *data.train)
        eta = torch.tensor(rates, device=data.x_train.device) / problem.lambda0
        record = stack.descend(eta, steps, torch.full_like(eta, problem.cut))
        results.append(
            [
                {
                    "c": c,
                    "diverged_at": int(record.diverged_at[i]),
                    "loss_ratio": float(record.loss[i, -1] / record.loss[i, 0]),
                    "eta_lambda": c / problem.lambda0 * float(record.lambda_end[i]),
                    "inactive": float(record.inactive[i]),
                }
                for i, c in enumerate(rates)
            ]
        )
    return results


def _bracket(found: list[Row]) -> tuple[float | None, float | None]:
    """Largest c up to which every net stayed alive, and the next one."""
    below = None
    for row in found:
        if lost(row):
            return below, row["c"]
        below = row["c"]
    return below, None


def lost(row: Row) -> bool:
    """Whether a run diverged or ended dead."""
    return row["diverged_at"] >= 0 or is_dead(row["inactive"])


def _seed(found: list[Row]) -> dict[str, Any]:
    """Where one seed stops being stable, how, and where it diverges."""
    below, above = _bracket(found)
    at = {
        name: next((r for r in found if r["c"] == c), None)
        for name, c in (("at_last_stable", below), ("at_first_lost", above))
    }
    first = at["at_first_lost"]
    bounded = [r["c"] for r in itertools.takewhile(lambda r: r["diverged_at"] < 0, found)]
    return {
        "last_stable": below,
        "first_unstable": above,
        "at_last_stable": at["at_last_stable"],
        "dies": first is not None and first["diverged_at"] < 0,
        "last_bounded": bounded[-1] if bounded else None,
    }


def _row(cell: dict[str, Any]) -> Row:
    held = cell["seeds"]
    values = [x["last_stable"] for x in held if x["last_stable"] is not None]
    bounded = [x["last_bounded"] for x in held if x["last_bounded"] is not None]
    ends = [x["at_last_stable"] for x in held if x["at_last_stable"] is not None]
    return {
        "activation": cell["activation"],
        "depth": cell["depth"],
        "seeds": len(held),
        "c_act": median(values) if values else None,
        "mean": mean(values),
        "se": standard_error(values),
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "open_above": sum(x["first_unstable"] is None for x in held),
        "dead": sum(x["dies"] for x in held),
        "bounded": median(bounded) if bounded else None,
        "above_start": sum(x["loss_ratio"] >= 1 for x in ends),
        "inactive": mean(x["inactive"] for x in ends),
        "eta_lambda_end": mean(x["eta_lambda"] for x in ends),
    }


def claim_entry(row: Row, step: float) -> Claim:
    """One entry; several layers to one step of the scan, as coarse as the table is there."""
    low, high = KNOWN[row["activation"], row["depth"]]
    allowed = 1.0 if row["depth"] == 1 else step
    value, few = row["c_act"], row["seeds"] < SEEDS
    expected = f"{low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
    text = "no stable rate" if value is None else f"median {value:.3g}"
    if value is not None:
        text += f" (seeds {row['lowest']:.3g} to {row['highest']:.3g})"
        text += f", {row['open_above']} seeds stable at every rate" if row["open_above"] else ""
    dying = 2 * row["dead"] > row["seeds"]
    if row["dead"]:
        text += f"; {row['dead']} seeds die beyond it, their loss stays bounded up to a median "
        text += f"of {row['bounded']:.3g}"
    near = value is not None and low / allowed <= value <= high * allowed
    within = f" (to one step of the scan, {allowed - 1:.1%})" if allowed > 1 else ""
    why = WHY if value is not None else "the scan starts too high"
    if few:
        why = f"it takes {SEEDS} seeds"
    elif dying:
        why = "dead nets end it here, and the independent runs do not say how they counted these"
    return Claim(
        f"c_act {row['activation']}, {row['depth']} hidden",
        f"squared loss: largest stable c {expected}{within}",
        text,
        None if value is None or few or dying else near,
        why,
    )


def claim_strong(rows: list[Row]) -> Claim:
    """c_act depends strongly on the activation."""
    deep = max(r["depth"] for r in rows)
    kept = {r["activation"]: r["c_act"] for r in rows if r["depth"] == deep and r["c_act"]}
    text = ", ".join(f"{k} {v:.3g}" for k, v in kept.items())
    ok = len(kept) > 1 and max(kept.values()) > 1.5 * min(kept.values())
    return Claim(
        "c_act depends on the activation",
        "squared loss: c_act differs strongly between activations (4 linear, about 12 deep ReLU)",
        f"at {deep} hidden layers: {text or 'no stable rate'}",
        ok if len(kept) > 1 else None,
        "these few activations have boundaries alike" if len(kept) > 1 else "one activation",
    )


def _panel(rows: list[Row], s: Settings) -> Panel:
    series = []
    for i, activation in enumerate(s.activations):
        kept = [r | {"c_act_se": r["se"]} for r in rows if r["activation"] == activation]
        style = "o-" if i < len(COLOURS) else "s--"  # the colours begin again
        series.append(line(activation, kept, "c_act", "depth", style))
    return Panel("Largest stable c (median of seeds)", "hidden layers", "c_act", series, ylog=True)
