"""The paper's own net and its published numbers: lambda_0, eta_crit and the largest stable c."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from catapult_ext.data import Dataset
from catapult_ext.experiments.descent import Recipe
from catapult_ext.experiments.reproduce import grid, grid_claims, grid_panels
from catapult_ext.experiments.reproduce.brackets import Bracket, listed, within
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import (
    Claim,
    Outcome,
    Row,
    averages,
    line,
    median,
    with_error,
)
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series, SideBySide
from catapult_ext.models import build

TITLE = "the paper's net beside its published numbers"
SOURCE = "Lewkowycz et al., figure 2 a-c: 3 hidden layers, ReLU, width 2048, 512 images of MNIST"
WIDTH, SEEDS = 2048, 3  # of the published net; fewer seeds decide nothing
# As published, with how far a sample of 512 images and a few seeds may lie from it.
LAMBDA0, LAMBDA0_NEAR = 0.32, 0.02
ETA_CRIT, ETA_CRIT_NEAR = 6.25, 0.4
C_MAX, C_STABLE, C_LOST = 12, 11, 14  # from a rate that is stable to one that is not


@dataclass(frozen=True)
class Settings:
    """Settings of paper-fc; the loss is 1/(2 k |B|) sum |f - y|^2, lambda_0 that of its GGN.

    Attributes:
        data: name of the data set.
        train: training samples.
        batch: samples of a step; None for all.
        widths: units of each hidden layer, one net each.
        depth: hidden layers.
        activation: between them.
        c: learning rates in units of 1 / lambda_0.
        seeds: number of initialisations.
        steps: gradient steps of every rate.
        loss: trained, by its name (``losses.resolve``); lambda is that of its Gauss-Newton matrix.
    """

    data: str = "mnist"
    train: int = 512
    batch: int | None = None
    widths: tuple[int, ...] = (512, WIDTH)
    depth: int = 3
    activation: str = "relu"
    c: tuple[float, ...] = (3, 6, 8, 10, 11, 12, 13, 14)
    seeds: int = setting(3, least=1)
    steps: int = 30
    loss: str = "half_mse_mean"


SETTINGS = {
    "smoke": Settings("digits", 48, widths=(32, 64), c=(3, 40), seeds=2, steps=10),
    "cpu": Settings(),
    "real": Settings(),
    "full": Settings(c=(2.5, 3, 4, 6, 8, 10, 11, 12, 13, 14, 16), seeds=10, steps=60),
}
_AS_PUBLISHED = ("data", "train", "batch", "depth", "activation", "loss")


def run(settings: Settings, context: Context) -> Outcome:
    """Train every width at every rate and compare the numbers with the published ones."""
    s = settings
    data = context.data(s.data, train=s.train, test=0, flatten=True)
    # Curvature and dead units are read at the end; the loss alone decides what diverges.
    recipe = Recipe(steps=s.steps, batch=s.batch, probe_factor=s.steps + 1.0, tol=1e-2)
    records = {}
    for width in s.widths:
        problem = grid.Problem(functools.partial(_network, s, data, width), data, s.loss)
        records[width] = grid.run_grid(context, f"w{width}", problem, s.c, s.seeds, recipe)
    lambda0 = {w: [r["lambda0"] for r in held if r["c"] == s.c[0]] for w, held in records.items()}
    found = {w: grid.brackets(held) for w, held in records.items()}
    rates = {w: grid.by_rate(held) for w, held in records.items()}
    other, largest = differs(s), max(s.widths)
    claims = [
        claim_value("lambda_0 of the paper's net", lambda0, LAMBDA0, LAMBDA0_NEAR, other),
        claim_value("eta_crit = 2/lambda_0", _rates(lambda0), ETA_CRIT, ETA_CRIT_NEAR, other),
        claim_c_max(found, other),
        claim_catapult(records[largest]),
        grid_claims.claim_bound(rates[largest]),
    ]
    tables = {"published": [_row(w, lambda0[w], found[w]) for w in s.widths]}
    tables["seeds"] = [r for w in s.widths for r in _seeds(w, lambda0[w], found[w])]
    tables |= {f"rates_{w}": rates[w] for w in s.widths}
    panels: dict[str, Panel | SideBySide] = {
        "numbers": _panel_numbers(tables["seeds"]),
        "peak": _panel_peak(rates),
        "loss": grid_panels.panel_losses(
            records[largest], f"Training loss of the first seed, width {largest}"
        ),
    }
    return Outcome(claims, tables, panels, [_note(other)])


def _network(s: Settings, data: Dataset, width: int, seed: int) -> nn.Module:
    shape = data.x_train.shape[1:]
    net = {"width": width, "depth": s.depth, "activation_name": s.activation}
    return build("fc", shape, data.outputs, seed=seed, **net)


def _rates(lambda0: Mapping[int, Sequence[float]]) -> dict[int, list[float]]:
    return {width: [2 / v for v in values] for width, values in lambda0.items()}


def _row(width: int, lambda0: Sequence[float], found: Sequence[Bracket]) -> Row:
    """The three numbers of a width next to the published ones."""
    known = width == WIDTH
    stable = [b.stable for b in found]
    return {
        "width": width,
        "seeds": len(found),
        **averages({"lambda_0": lambda0}),
        "lambda_0 published": LAMBDA0 if known else None,
        **averages({"eta_crit": [2 / v for v in lambda0]}),
        "eta_crit published": ETA_CRIT if known else None,
        "largest stable c (median)": median(stable),
        "lowest": min(stable),
        "highest": max(stable),
        "c published": f"about {C_MAX}" if known else None,
    }


def _seeds(width: int, lambda0: Sequence[float], found: Sequence[Bracket]) -> list[Row]:
    return [
        {
            "width": width,
            "seed": b.seed,
            "lambda_0": value,
            "eta_crit": 2 / value,
            "largest stable c": b.stable,
            "first lost c": b.lost,
            "ends dead": b.dead,
        }
        for value, b in zip(lambda0, found, strict=True)
    ]


def differs(settings: Settings) -> str:
    """In what the settings are not those of the published numbers; empty where they are."""
    usual = Settings()
    names = [n for n in _AS_PUBLISHED if getattr(settings, n) != getattr(usual, n)]
    return ", ".join(f"{n} = {getattr(settings, n)}" for n in names)


def _open(widths: Mapping[int, Sequence[object]], other: str) -> str:
    """Why the published numbers decide nothing here; empty where they do."""
    if other:
        return f"the published number is of another setting (here {other})"
    if WIDTH not in widths:
        return f"the published number is of width {WIDTH}"
    return f"it takes {SEEDS} seeds" if len(widths[WIDTH]) < SEEDS else ""


def claim_value(
    name: str,
    values: Mapping[int, Sequence[float]],
    published: float,
    near: float,
    other: str = "",
) -> Claim:
    """The mean over the seeds at the published width lies ``near`` the published value."""
    means = {w: averages({"v": held}) for w, held in values.items()}
    texts = [f"{with_error(m['v'], m['v_se'])} at width {w}" for w, m in means.items()]
    open_ = _open(values, other)
    return Claim(
        name,
        f"{published} at width {WIDTH} (within {near:g})",
        ", ".join(texts),
        None if open_ else abs(means[WIDTH]["v"] - published) <= near,
        open_ or "another standardisation of the pixels, or another normalisation of the loss",
    )


def claim_c_max(found: Mapping[int, Sequence[Bracket]], other: str = "") -> Claim:
    """The largest stable c at the published width, as far as the grid of rates tells it."""
    open_ = _open(found, other)
    holds, why = (None, open_) if open_ else within(found[WIDTH], C_STABLE, C_LOST, SEEDS)
    texts = [f"{listed(held)} at width {w}" for w, held in found.items()]
    return Claim(
        "largest stable c",
        f"about {C_MAX} at width {WIDTH} ({C_STABLE} stable, {C_LOST} not)",
        f"last stable to first lost rate of the seeds: {'; '.join(texts)}",
        holds,
        why,
    )


def claim_catapult(records: Sequence[grid.Record]) -> Claim:
    """Above 2 every stable run's loss first rises, and ends below its start."""
    above = [r for r in records if r["c"] > 2 and grid.stable(r)]
    calm = sorted({r["c"] for r in above if r["rose_at"] < 0})
    high = sorted({r["c"] for r in above if not r["loss"][-1] < r["loss0"]})
    text = f"{len(above)} stable runs above 2"
    text += f"; without a rise at c = {_named(calm)}" if calm else ", the loss of all rises"
    text += f"; above its start at the end at c = {_named(high)}" if high else " and ends lower"
    few = len(above) < SEEDS
    return Claim(
        "catapults between 2 and the largest stable c",
        "the loss first exceeds its start and then falls below it",
        text,
        None if few else not calm and not high,
        "too few stable runs" if few else "finite width, or too few steps to come down",
    )


def _named(rates: Sequence[float]) -> str:
    return ", ".join(f"{c:g}" for c in rates)


def _panel_numbers(seeds: Sequence[Row]) -> SideBySide:
    """lambda_0 and the largest stable c of every seed, next to the published values."""
    widths = sorted({r["width"] for r in seeds})

    def points(label: str, key: str) -> Series:
        kept = [r for r in seeds if r[key] is not None]
        # Seeds stand side by side: they often end at the same rate.
        x = [widths.index(r["width"]) + 0.05 * (r["seed"] % 7) for r in kept]
        return Series(label, x, [r[key] for r in kept], style="o")

    def panel(label: str, series: list[Series], published: float, shown: str) -> Panel:
        ticks = {float(i): f"width {width}" for i, width in enumerate(widths)}
        return Panel("", "", label, series, hlines={f"published: {shown}": published}, xticks=ticks)

    start = panel(r"$\lambda_0$", [points("of a seed", "lambda_0")], LAMBDA0, str(LAMBDA0))
    ends = [points("largest stable", "largest stable c"), points("first lost", "first lost c")]
    end = panel(grid_panels.C_LABEL, ends, float(C_MAX), f"about {C_MAX}")
    return SideBySide("The paper's net: start and end of stability", start, end, shared=False)


def _panel_peak(rates: Mapping[int, list[Row]]) -> Panel:
    """Largest loss over the initial one against c, one line a width."""
    kept = {w: [r for r in rows if grid.all_live(r)] for w, rows in rates.items()}
    return Panel(
        "Largest loss over the initial one, median of seeds",
        grid_panels.C_LABEL,
        "peak / start",
        [line(f"width {w}", rows, "loss_peak_ratio") for w, rows in kept.items()],
        xlog=True,
        ylog=True,
        vlines={r"$\eta_{crit}$": 2.0, f"published c_max: about {C_MAX}": float(C_MAX)},
    )


def _note(other: str) -> str:
    here = f" This run differs: {other}." if other else ""
    return (
        f"The published numbers (lambda_0 = {LAMBDA0}, eta_crit = {ETA_CRIT}, largest stable c "
        f"about {C_MAX}) are of width {WIDTH}, full batches of 512 images of MNIST, standardised "
        f"pixels and the loss 1/(2 k |B|) sum |f - y|^2; lambda_0 is that of its Gauss-Newton "
        f"matrix.{here}"
    )
