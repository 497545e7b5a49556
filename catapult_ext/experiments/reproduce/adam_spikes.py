"""Adam's loss spikes: its preconditioner decays until the preconditioned sharpness is too large."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from catapult_ext import losses
from catapult_ext.data import Dataset
from catapult_ext.experiments.edge_runs import Record, follow
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Claim, Outcome, Row, show
from catapult_ext.experiments.reproduce.settings import setting
from catapult_ext.figures.line_panel import Panel, Series, SideBySide
from catapult_ext.models import build

TITLE = "Adam's loss spikes"
SOURCE = (
    "2506.04805: while gradients shrink, Adam's second moment decays, until eta times the "
    "preconditioned sharpness exceeds 2 (1 + beta1) / (1 - beta1) and the loss spikes"
)
BETA1 = 0.9
EDGE = 2 * (1 + BETA1) / (1 - BETA1)
SMALLEST, MOST_SHOWN = 1e-30, 1.5  # where a picture cuts the loss on a line, and chi
CHI = "chi = eta S / 38"
RISE = 2.0  # a spike: the loss exceeds its running minimum by this factor
CLOSE = 0.1  # relative error of the rough formula
QUIET = 20  # steps below that level that end a spike, and before an onset in which chi is read
USUAL = {"loss": "half_mse"}


@dataclass(frozen=True)
class Settings:
    """Settings of adam-spikes; full batch, tanh nets of torch's own initialisation, ``half_mse``.

    Attributes:
        data: name of the data set.
        train: training samples.
        width: units of each hidden layer.
        depth: hidden layers.
        rate: rate of the nets.
        beta2: beta2 of the nets.
        steps: number of steps of the nets.
        every: steps from one reading of the preconditioned sharpness to the next.
        seeds: number of initialisations.
        line_rate: rate on x^2 / 2 from x = 1.
        line_beta2: values of beta2 there.
    """

    data: str = "digits"
    train: int = 128
    width: int = 32
    depth: int = 2
    rate: float = 0.01
    beta2: float = setting(0.99, above=0, below=1)
    steps: int = 800
    every: int = 2
    seeds: int = 2
    line_rate: float = 0.01
    line_beta2: tuple[float, ...] = setting((0.97, 0.99, 0.995), above=0, below=1, ascending=True)


SETTINGS = {
    "smoke": Settings(train=32, width=8, steps=60, every=10, seeds=1, line_beta2=(0.97,)),
    "cpu": Settings(),
    "full": Settings("cifar-10", 5000, 200, 3, steps=10_000, every=10, seeds=3),
}


def run(settings: Settings, context: Context) -> Outcome:
    """Adam on x^2 / 2 and on nets, and the claims."""
    s = settings
    data = context.data(s.data, train=s.train, test=0, flatten=True)
    lines = context.parts(
        {f"line_b{b:g}": functools.partial(on_a_line, s.line_rate, b) for b in s.line_beta2}
    )
    nets = context.parts({f"net_s{i}": functools.partial(_net, s, data, i) for i in range(s.seeds)})
    found = [spike for i, record in enumerate(nets) for spike in spikes(record, seed=i)]
    rows = [{k: v for k, v in r.items() if not isinstance(v, list)} for r in lines]
    claims = [
        claim_decay(rows),
        claim_line_spikes(rows),
        claim_before(found),
        claim_after(found),
        claim_chance(nets, found),
    ]
    panels = {"line": _panel_line(lines[-1]), "net": _panel_net(nets[0])}
    notes = [f"A spike: the loss exceeds its running minimum by a factor {RISE:g}."]
    return Outcome(claims, {"lines": rows, "spikes": found}, panels, notes)


def on_a_line(rate: float, beta2: float) -> dict[str, Any]:
    """Adam on x^2 / 2 from x = 1, whose preconditioned sharpness is 1 / (sqrt(v) + eps).

    Returns:
        ``predicted`` (2 ln(k* / eta) / -ln(beta2), the step at which sqrt(v), decaying from 1,
        falls below eta / k*), ``crossed_at`` (the step at which it does), ``before`` and ``peak``:
        smallest loss up to there and largest one in the following decay time; ``step``, ``loss``
        and ``chi`` as lists.
    """
    x = torch.ones(1, dtype=torch.float64, device="cpu", requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=rate, betas=(BETA1, beta2))
    predicted = 2 * math.log(EDGE / rate) / -math.log(beta2)
    values: list[float] = []
    chi: list[float] = []
    for _ in range(math.ceil(1.5 * predicted)):
        optimizer.zero_grad()
        loss = x.square().sum() / 2
        values.append(loss.item())
        loss.backward()
        optimizer.step()
        state, eps = optimizer.state[x], optimizer.param_groups[0]["eps"]
        second = state["exp_avg_sq"].item() / (1 - beta2 ** float(state["step"]))
        chi.append(rate / (math.sqrt(second) + eps) / EDGE)
    crossed = next((t for t, value in enumerate(chi) if value > 1), None)
    row: dict[str, Any] = {"beta2": beta2, "predicted": predicted, "crossed_at": crossed}
    row |= {"before": None, "peak": None}
    if crossed is not None:
        later = values[crossed : crossed + math.ceil(2 / -math.log(beta2))]
        row |= {"before": min(values[: crossed + 1]), "peak": max(later)}
    return row | {"step": list(range(len(values))), "loss": values, "chi": chi}


def _net(s: Settings, data: Dataset, seed: int) -> Record:
    model = build(
        "fc",
        tuple(data.x_train.shape[1:]),
        data.outputs,
        width=s.width,
        depth=s.depth,
        activation_name="tanh",
        parameterisation="standard",
        init="torch",
        seed=seed,
    ).to(data.x_train)
    optimizer = torch.optim.Adam(model.parameters(), lr=s.rate, betas=(BETA1, s.beta2))
    return follow(model, losses.resolve("half_mse"), data.train, optimizer, s.steps, s.every)


def spikes(record: Record, seed: int) -> list[Row]:
    """The spikes of a run, each from its onset to ``QUIET`` steps below the level of spikes.

    Returns:
        Rows with ``onset``, ``end``, ``rise`` (peak over the lowest loss before), ``chi_before``
        (largest reading in the ``QUIET`` steps up to the onset) and ``chi_after`` (smallest one
        from there to the end).
    """
    values = [math.inf if value is None else value for value in record["loss"]]
    pairs = zip(record["at"], record["chi"], strict=True)
    read = [(at, chi) for at, chi in pairs if chi is not None]
    found: list[Row] = []
    lowest, end = math.inf, -1
    for t, value in enumerate(values):
        if value > RISE * lowest and t > end:
            end = _end(values, t, RISE * lowest)
            row: Row = {"seed": seed, "onset": t, "end": end}
            row["rise"] = min(max(values[t : end + 1]) / lowest, 1e300)
            before = [chi for at, chi in read if t - QUIET <= at <= t]
            after = [chi for at, chi in read if t < at <= end]
            row |= {"chi_before": max(before, default=None), "chi_after": min(after, default=None)}
            found.append(row)
        lowest = min(lowest, value)
    return found


def _end(values: list[float], onset: int, level: float) -> int:
    """Last of the first ``QUIET`` steps in a row below ``level``, or the run's last step."""
    calm = 0
    for t in range(onset, len(values)):
        calm = calm + 1 if values[t] < level else 0
        if calm == QUIET:
            return t
    return len(values) - 1


def claim_decay(rows: list[Row]) -> Claim:
    """The edge is crossed when the formula says."""
    text = "; ".join(
        f"beta2 = {r['beta2']:g}: step {show(r['crossed_at'], 'd')} of {r['predicted']:.0f}"
        for r in rows
    )
    kept = [r for r in rows if r["crossed_at"] is not None]
    close = [r for r in kept if abs(r["crossed_at"] / r["predicted"] - 1) <= CLOSE]
    return Claim(
        "decay of the preconditioner",
        "on x^2 / 2 the edge is crossed at step 2 ln(38 / eta) / -ln(beta2), within 10 %",
        text,
        len(close) == len(rows) if rows else None,
        "the gradient falls more slowly than beta2^(t / 2), or oscillates",
    )


def claim_line_spikes(rows: list[Row]) -> Claim:
    """The crossing on the line is followed by a spike."""
    kept = [r for r in rows if r["peak"] is not None]
    text = "; ".join(f"beta2 = {r['beta2']:g}: {r['before']:.2g} to {r['peak']:.2g}" for r in kept)
    return Claim(
        "spike on a line",
        "once it is crossed the loss x^2 / 2 rises (by at least a factor 100)",
        text or "no run crossed the edge",
        all(r["peak"] >= 100 * r["before"] for r in kept) if kept else None,
        "the loss had not become small before, or rounding stops the decay",
    )


def claim_before(found: list[Row]) -> Claim:
    """Spikes of nets begin above the edge."""
    kept = [r for r in found if r["chi_before"] is not None]
    above = [r for r in kept if r["chi_before"] > 1]
    text = f"above it in {len(above)} of {len(kept)} spikes; chi "
    text += ", ".join(f"{r['chi_before']:.2f}" for r in kept)
    return Claim(
        "the edge before a spike",
        f"in the {QUIET} steps before a spike eta times the preconditioned sharpness exceeds 38 "
        "(chi > 1)",
        text if kept else "no spike with a reading before it",
        len(above) == len(kept) if kept else None,
        "a reading every few steps may miss a short excess",
    )


def claim_after(found: list[Row]) -> Claim:
    """Spikes bring the preconditioned sharpness down."""
    kept = [r for r in found if r["chi_after"] is not None and r["chi_before"] is not None]
    below = [r for r in kept if r["chi_after"] < min(1, r["chi_before"])]
    text = f"below it after {len(below)} of {len(kept)} spikes; chi "
    text += ", ".join(f"{r['chi_after']:.2f}" for r in kept)
    return Claim(
        "a spike heals itself",
        "large gradients of the spike fill the second moment, and chi falls below 1",
        text if kept else "no spike with readings around it",
        len(below) == len(kept) if kept else None,
        "spikes follow each other too closely",
    )


def claim_chance(records: list[Record], found: list[Row]) -> Claim:
    """An excess is more frequent before spikes than in other stretches of the same length."""
    every = [highest for record in records for highest in _highest(record)]
    before = [r["chi_before"] for r in found if r["chi_before"] is not None]
    share = sum(c > 1 for c in every) / max(1, len(every))
    hit = sum(c > 1 for c in before) / max(1, len(before))
    return Claim(
        "not by chance",
        f"chi exceeds 1 in more of the stretches of {QUIET} steps before spikes than of all",
        f"before {hit:.0%} of {len(before)} spikes, in {share:.0%} of {len(every)} stretches",
        hit > share if before and every else None,
        "the run lies above the edge throughout" if before else "no spike with readings before it",
    )


def _highest(record: Record) -> list[float]:
    """Largest chi of the ``QUIET`` steps up to every reading."""
    pairs = zip(record["at"], record["chi"], strict=True)
    read = [(at, chi) for at, chi in pairs if chi is not None]
    return [max(c for at, c in read if end - QUIET <= at <= end) for end, _ in read]


def _panel_line(line: Row) -> SideBySide:
    step = [float(t) for t in line["step"]]
    floor = [max(value, SMALLEST) for value in line["loss"]]
    marks = {"predicted crossing": line["predicted"]}
    left = Panel("loss", "step", "x^2 / 2", [Series("loss", step, floor, style="-")], ylog=True)
    series = [Series("chi", step, line["chi"], style="-")]
    right = Panel("chi", "step", CHI, series, ylog=True, vlines=marks, hlines={"edge": 1.0})
    return SideBySide(f"Adam on x^2 / 2, beta2 = {line['beta2']:g}", left, right, shared=False)


def _panel_net(record: Record) -> SideBySide:
    values = [(t, value) for t, value in enumerate(record["loss"]) if value]
    chi = [(at, c) for at, c in zip(record["at"], record["chi"], strict=True) if c is not None]
    left = Panel("loss", "step", "loss", [_series("loss", values)], ylog=True)
    shown = [(at, min(c, MOST_SHOWN)) for at, c in chi]
    right = Panel("chi", "step", CHI, [_series("chi", shown)], hlines={"edge": 1.0})
    return SideBySide("Adam on a net, first seed", left, right, shared=False)


def _series(name: str, points: list[tuple[int, float]]) -> Series:
    return Series(name, [float(at) for at, _ in points], [y for _, y in points], style="-")
