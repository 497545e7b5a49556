"""The transition sharpens with the width (appendix C); kernel and Hessian agree (D.6)."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

from catapult_ext.data import Dataset
from catapult_ext.experiments.curvature import top_sharpness
from catapult_ext.experiments.descent import Recipe, Start, start, train
from catapult_ext.experiments.linearised import linearised_sweep
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.grid_panels import C_LABEL
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Outcome,
    Row,
    line,
    median,
    show,
    slope,
)
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel
from catapult_ext.models import build

TITLE = "the transition sharpens with the width"
SOURCE = "Lewkowycz et al., appendix C and D.6 (lambda against eta for growing width)"
FEW = 3  # seeds whose median says something
LINEAR_CS = (1.96, 1.98, 2.02, 2.04)
USUAL = {"loss": "half_mse"}


@dataclass(frozen=True)
class Settings:
    """Settings of width-sharpening; full batch, loss 1/(2 N) sum |f - y|^2.

    Attributes:
        data: name of the data set.
        train: training samples.
        widths: units of each of the hidden layers.
        depth: hidden layers.
        c: rates tried in ascending order until projection and loss have both risen.
        seeds: number of initialisations.
        steps: gradient steps within which they must rise.
        hessian_seeds: initialisations at which the Hessian is solved too.
    """

    data: str = "digits"
    train: int = 128
    widths: tuple[int, ...] = setting((256, 512, 1024, 2048), ascending=True)
    depth: int = 3
    c: tuple[float, ...] = setting(
        (
            *(2.02, 2.05, 2.08, 2.11, 2.14, 2.17, 2.2, 2.25, 2.3, 2.35, 2.4, 2.5, 2.6, 2.7, 2.85),
            *(3.0, 3.25, 3.5, 4.0, 5.0, 6.0),
        ),
        ascending=True,
    )
    seeds: int = 5
    steps: int = 20
    hessian_seeds: int = setting(3, least=0)


SETTINGS = {
    "smoke": Settings(
        train=48, widths=(32, 64), c=(2.1, 2.5, 3.5, 6.0), seeds=2, steps=8, hessian_seeds=1
    ),
    "cpu": Settings(),
    "full": Settings(
        train=512, widths=(256, 512, 1024, 2048, 4096, 8192), seeds=10, hessian_seeds=10
    ),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Find c_proj, c_loss and the gap to the Hessian for every width and seed; judge the claims."""
    s = settings
    data = context.data(s.data, train=s.train, test=0, flatten=True)
    recipe = Recipe(steps=s.steps, top=data.outputs, probes=False)
    jobs = {
        f"w{width}_s{seed}": functools.partial(_cell, s, data, width, seed, recipe)
        for width in s.widths
        for seed in range(s.seeds)
    }
    *cells, linear = context.parts(
        jobs | {"linearised": functools.partial(_linearised, s, data, recipe)}
    )
    rows = [_row(width, [c for c in cells if c["width"] == width]) for width in s.widths]
    claims = [
        _claim_falls(rows, "c_proj", "c_proj falls with the width"),
        *_claims_values(rows),
        _claim_linear(linear),
        _claim_falls(rows, "c_loss", "c_loss falls with the width"),
        _claim_gap(rows),
    ]
    panels = {"thresholds": _panel_thresholds(rows), "gap": _panel_gap(rows)}
    notes = [
        f"Thresholds are the first c of the grid at which the quantity exceeds its start within "
        f"{s.steps} steps; c_proj follows the residual's components along the top "
        f"{data.outputs} kernel eigenvectors that carry at least a tenth of the projection."
    ]
    return Outcome(claims, {"widths": rows, "cells": _flat(cells)}, panels, notes)


def _start(s: Settings, data: Dataset, width: int, seed: int, recipe: Recipe) -> Start:
    model = build(
        "fc", (data.x_train.shape[1],), data.outputs, width=width, depth=s.depth, seed=seed
    )
    return start(model, data, "half_mse", recipe)


def _cell(s: Settings, data: Dataset, width: int, seed: int, recipe: Recipe) -> dict[str, Any]:
    """Thresholds of one initialisation: first c of the grid whose projection, whose loss rises."""
    problem = _start(s, data, width, seed, recipe)
    found: dict[str, Any] = {"c_proj": None, "c_loss": None}
    tried = []
    for c in s.c:
        record = train(problem, problem.eta(c, recipe), recipe, seed=seed)
        tried.append({"c": c, "grew_at": record["grew_at"], "rose_at": record["rose_at"]})
        for key, at in (("c_proj", "grew_at"), ("c_loss", "rose_at")):
            rose = record[at] >= 0 or record["diverged_at"] >= 0
            found[key] = c if found[key] is None and rose else found[key]
        if None not in found.values():
            break
    gap = None
    if seed < s.hessian_seeds:
        problem.model.load_state_dict(problem.state)
        top, _ = top_sharpness(problem.model, problem.loss, *data.train, None, 1e-3)
        gap = abs(top - problem.lambda0) / problem.lambda0
    return {"width": width, "seed": seed, "lambda0": problem.lambda0, **found, "gap": gap} | {
        "tried": tried
    }


def _linearised(s: Settings, data: Dataset, recipe: Recipe) -> dict[str, Any]:
    """Growth of the projection in the model linearised at its start."""
    problem = _start(s, data, s.widths[0], 0, recipe)
    etas = [c / problem.lambda0 for c in LINEAR_CS]
    records = linearised_sweep(problem, etas, s.steps, only=1)
    rising = [max(record["growth"]) > 1 + 1e-6 for record in records]
    return {"c": list(LINEAR_CS), "rises": rising}


def _row(width: int, cells: list[dict[str, Any]]) -> Row:
    def middle(key: str) -> float | None:
        values = [c[key] for c in cells]
        return None if None in values else median(values)

    gaps = [c["gap"] for c in cells if c["gap"] is not None]
    return {
        "width": width,
        "seeds": len(cells),
        "c_proj": middle("c_proj"),
        "c_loss": middle("c_loss"),
        "hessian_gap": median(gaps) if gaps else None,
        "lambda0": median([c["lambda0"] for c in cells]),
    }


def _flat(cells: list[dict[str, Any]]) -> list[Row]:
    return [{k: v for k, v in c.items() if k != "tried"} for c in cells]


def _claim_falls(rows: list[Row], key: str, name: str) -> Claim:
    values = [r[key] for r in rows]
    text = ", ".join(f"{show(r[key], '.4g')} at {r['width']}" for r in rows)
    known = None not in values and len(rows) > 1 and min(r["seeds"] for r in rows) >= FEW
    falls = known and all(b <= a for a, b in itertools.pairwise(values))
    falls = falls and values[-1] < values[0]
    return Claim(
        name,
        "the threshold tends to 2 as the width grows",
        f"medians: {text}",
        falls if known else None,
        "few seeds scatter, or the grid of rates is too coarse or too short"
        if known
        else f"it takes two widths, {FEW} seeds of each, and a rise within the grid",
    )


def _claims_values(rows: list[Row]) -> list[Claim]:
    claims = []
    for width, limit in ((512, 2.35), (2048, 2.14)):
        row = next((r for r in rows if r["width"] == width), None)
        if row is None:
            continue
        value = row["c_proj"]
        known = value is not None and row["seeds"] >= FEW
        claims.append(
            Claim(
                f"c_proj at width {width}",
                f"the median is at most {limit}",
                f"median {show(value, '.4g')}",
                value <= limit if known else None,
                "few seeds scatter"
                if known
                else f"fewer than {FEW} seeds, or no rate of the grid made it grow",
            )
        )
    return claims


def _claim_linear(linear: dict[str, Any]) -> Claim:
    below = [r for c, r in zip(linear["c"], linear["rises"], strict=True) if c < 2]
    above = [r for c, r in zip(linear["c"], linear["rises"], strict=True) if c > 2]
    grows = [c for c, r in zip(linear["c"], linear["rises"], strict=True) if r]
    return Claim(
        "linearised net crosses at 2",
        "linearised at its start, the net's top component grows exactly from c = 2 on",
        f"of c = {', '.join(f'{c:g}' for c in linear['c'])} it grows at "
        + (", ".join(f"{c:g}" for c in grows) or "none"),
        all(above) and not any(below) if above and below else None,
        "so near to 2 the growth over these steps drowns in rounding",
    )


def _claim_gap(rows: list[Row]) -> Claim:
    kept = [r for r in rows if r["hessian_gap"]]
    predicted = "the top Hessian eigenvalue agrees with lambda at large width"
    if len(kept) < 2:
        return Claim("Hessian gap shrinks", predicted, "one width", None, "needs two widths")
    steep, error = slope(
        [math.log(r["width"]) for r in kept], [math.log(r["hessian_gap"]) for r in kept]
    )
    values = ", ".join(f"{r['hessian_gap']:.3g} at {r['width']}" for r in kept)
    text = f"relative gap at the start: {values}; slope in log-log {steep:.2f}"
    text += "" if error is None else f" +- {error:.2f}"
    if error is None:
        return Claim("Hessian gap shrinks", predicted, text, None, "two widths have no error")
    why = "the gap scatters from seed to seed more than over these widths"
    return Claim("Hessian gap shrinks", predicted, text, steep < -2 * error, why)


def _panel_thresholds(rows: list[Row]) -> Panel:
    series = [line(f"{key} (median)", rows, key, "width") for key in ("c_proj", "c_loss")]
    title = "Where the residual's top components and the loss begin to rise"
    return Panel(title, "width", C_LABEL, series, xlog=True, hlines={"c = 2": 2.0})


def _panel_gap(rows: list[Row]) -> Panel:
    gap = line("median", [r for r in rows if r["hessian_gap"]], "hessian_gap", "width")
    title = "Relative gap between the top Hessian eigenvalue and lambda at the start"
    return Panel(title, "width", "gap", [gap], xlog=True, ylog=True)
