"""Pictures of a spectrum: its largest eigenvalues with their errors, and its density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from catapult_ext.figures.style import BLUE, RED, new_figure, styled


def eigenvalues_figure(values: Sequence[float], errors: Sequence[float], checked: str) -> Any:
    """A matplotlib Figure of eigenvalues against their rank, with their errors as bars.

    Args:
        values: descending.
        errors: their bounds.
        checked: what the errors rest on.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    from matplotlib.ticker import MaxNLocator

    with styled():
        figure = new_figure(5.0, 3.2)
        ax = figure.add_subplot()
        ranks = range(1, len(values) + 1)
        ax.errorbar(ranks, values, yerr=errors, fmt="o", ms=4, color=BLUE, ecolor=RED, capsize=3)
        if len(values) > 1 and min(values) > 0 and max(values) > 20 * min(values):
            ax.set_yscale("log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="rank", ylabel="eigenvalue", title=f"Largest eigenvalues, {checked}")
    return figure


def density_figure(
    low: float, high: float, density: Callable[..., Any], name: str, n: int | None = None
) -> Any:
    """A matplotlib Figure of a spectral density with its band of two standard errors, log scale.

    Args:
        low: least eigenvalue shown.
        high: greatest.
        density: maps (j,) positions to values and standard errors, as SpectralDensity.density.
        name: name of the operator.
        n: its size, for the title.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    import torch

    margin = 0.05 * max(high - low, 1e-300)
    x = torch.linspace(low - margin, high + margin, 600, dtype=torch.float64, device="cpu")
    value, error = density(x)
    with styled():
        figure = new_figure(7.0, 3.6)
        ax = figure.add_subplot()
        floor = 1e-6 * float(value.max())
        ax.plot(x, value.clamp_min(floor), color=BLUE, lw=1.2)
        below, above = (value - 2 * error).clamp_min(floor), (value + 2 * error).clamp_min(floor)
        ax.fill_between(x, below, above, color=BLUE, alpha=0.2, lw=0)
        ax.set(yscale="log", xlabel=f"eigenvalue of the {name}", ylabel="density")
        if n is not None:
            ax.set_title(f"Density of {n} eigenvalues")
    return figure


def convergence_figure(history: Sequence[float]) -> Any:
    """A matplotlib Figure of relative residuals against the steps of a solve, log scale.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    with styled():
        figure = new_figure(5.0, 3.2)
        ax = figure.add_subplot()
        ax.plot(range(len(history)), [max(r, 1e-300) for r in history], color=BLUE, lw=1.2)
        ax.set(yscale="log", xlabel="step", ylabel="largest |r| / |b|", title="Residual of a solve")
    return figure
