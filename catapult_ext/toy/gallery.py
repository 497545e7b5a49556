"""The pictures of docs/toy.md: toy figures of the paper and its follow-ups, one function each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catapult_ext import _validate, ops
from catapult_ext.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    new_figure,
    save_figure,
)
from catapult_ext.toy.maps import run_scalar
from catapult_ext.toy.quadratic_models import neural_quadratic, second_order_regression

COLOURS = (BLUE, ORANGE, RED, GREEN, BLACK)


def plane(path: Path) -> Path:
    """Gradient descent in the only plane that the weights of the one-sample model move in.

    Axes: the amplitudes h, k of the two layers, in units with eta lambda = h^2 + k^2 at c = 2.8.
    The minima are the axes, the flat ones close to the origin.
    """
    figure = new_figure(10.5, 4.8)
    axes = figure.subplots(1, 2)
    grid = np.linspace(-1.5, 2.0, 400)
    loss = (grid[None, :] * grid[:, None]) ** 2 / 2
    for ax, c, title in ((axes[0], 1.4, "lazy: c = 1.4"), (axes[1], 2.8, "catapult: c = 2.8")):
        scale = (2.8 / c) ** 0.5  # the same weights at both learning rates
        h = torch.tensor([1.67 / scale], dtype=torch.float64, device="cpu")
        points = [(float(h), 0.05 / scale)]
        for _ in range(40):
            h_t, k_t = (torch.tensor([p], dtype=torch.float64, device="cpu") for p in points[-1])
            end = ops.toy_scalar(h_t, k_t, 1)
            points.append((float(end.h), float(end.k)))
        way = scale * np.array(points)
        levels = np.geomspace(1e-4, 4, 18)
        ax.contourf(
            grid, grid, np.log10(loss + 1e-6), levels=np.log10(levels), cmap="Blues", extend="both"
        )
        angle = np.linspace(0, 2 * np.pi, 200)
        radius = (2 * 2.8 / c) ** 0.5
        ax.plot(
            radius * np.cos(angle),
            radius * np.sin(angle),
            "--",
            color=BLACK,
            linewidth=1,
            label=r"$\lambda = 2/\eta$",
        )
        ax.plot(way[:, 0], way[:, 1], "o-", color=RED, markersize=3.5, linewidth=0.9)
        ax.plot(*way[0], "s", color=ORANGE, markersize=7, label="start")
        ax.plot(*way[-1], "*", color=GREEN, markersize=13, label="end")
        ax.set(title=title, xlabel="h", xlim=(-1.5, 2.0), ylim=(-1.5, 2.0))
        ax.legend(loc="lower left")
    axes[0].set_ylabel("k")
    return save_figure(figure, path, 110)


def phases(path: Path) -> Path:
    """Loss and eta * lambda against the step in the three phases, at three widths."""
    figure = new_figure(12, 6)
    axes = figure.subplots(2, 3, sharex=True)
    for column, c in enumerate((1.5, 2.6, 4.1)):
        for width, colour in zip((1e3, 1e6, 1e9), COLOURS, strict=False):
            run = run_scalar(c, steps=60, width=width, f0=0.7, record_every=1)
            end = int(run.diverged_at) if int(run.diverged_at) >= 0 else 61
            axes[0, column].semilogy(
                run.loss_record[:end].clamp(min=1e-12),
                color=colour,
                label=f"W = $10^{{{np.log10(width):.0f}}}$",
            )
            axes[1, column].plot(run.eta_lambda_record[:end], color=colour)
        axes[0, column].set(title=f"c = {c}", ylim=(1e-12, None))
        axes[1, column].axhline(2, color=GREY, linestyle="--", linewidth=0.8)
        axes[1, column].set(xlabel="step", ylim=(0, 6))
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel(r"$\eta\lambda$")
    axes[0, 0].legend()
    return save_figure(figure, path, 110)


def curvature(path: Path) -> Path:
    """Peak loss and final curvature against c: the transition sharpens with the width."""
    figure = new_figure(11, 4.3)
    axes = figure.subplots(1, 2)
    c = torch.linspace(0.05, 3.99, 1600, dtype=torch.float64, device="cpu")
    for width, colour in zip((1e2, 1e4, 1e8), COLOURS, strict=False):
        run = run_scalar(c, steps=20000, width=width, f0=0.7)
        name = f"W = $10^{{{np.log10(width):.0f}}}$"
        axes[0].semilogy(c, run.peak_loss, color=colour, label=name)
        axes[1].plot(c, run.eta_lambda, color=colour, linewidth=0.8, label=name)
    axes[0].set(ylabel="peak loss")
    axes[1].plot([0, 2, 4], [0, 2, 0], ":", color=GREY, label=r"$c$, then $4 - c$")
    axes[1].set(ylabel=r"final $\eta\lambda$", ylim=(0, 2.1))
    for ax in axes:
        ax.axvline(2, color=GREY, linestyle="--", linewidth=0.8)
        ax.set_xlabel(r"$c = \eta\lambda_0$")
    axes[1].legend()
    return save_figure(figure, path, 110)


def quadratic(path: Path) -> Path:
    """Neural quadratic model (Zhu et al., 2205.11787): one kernel direction catapults, or both."""
    generator = torch.Generator().manual_seed(4)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    samples, width = 64, 2000
    side = torch.where(torch.arange(samples, device="cpu") < 36, 1.0, -1.0).double()
    x = (2 * side + randn(samples))[:, None]
    signs = randn(width).sign()
    model = neural_quadratic(randn(width, 1), signs, x, randn(samples).sign(), mean=True)
    values = torch.linalg.eigvalsh(model.kernel()).flip(0)
    rates = (
        ("1.8 / lambda_1: none", 1.8 / values[0]),
        ("between 2 / lambda_1 and 2 / lambda_2: the first", 1 / values[0] + 1 / values[1]),
        ("beyond 2 / lambda_2: both", 3.3 / values[0]),
    )
    figure = new_figure(12.5, 6)
    axes = figure.subplots(2, 3, sharex=True)
    for column, (title, eta) in enumerate(rates):
        run = model.run(float(eta), 40)
        for i in range(2):
            axes[0, column].semilogy(
                run.projected_loss[:, i].clamp(min=1e-12),
                color=COLOURS[i],
                label=f"along $p_{i + 1}$",
            )
            axes[1, column].plot(
                eta * run.eigenvalues[:, i], color=COLOURS[i], label=rf"$\eta\lambda_{i + 1}$"
            )
        axes[0, column].set_title(title.replace("lambda_", "λ"), fontsize=10)
        axes[1, column].axhline(2, color=GREY, linestyle="--", linewidth=0.8)
        axes[1, column].set_xlabel("step")
    axes[0, 0].set_ylabel("loss")
    axes[0, 0].legend()
    axes[1, 0].legend()
    return save_figure(figure, path, 110)


def regression(path: Path) -> Path:
    """Second-order regression (Agarwala et al., 2210.04860): progressive sharpening to the edge."""
    generator = torch.Generator().manual_seed(0)
    samples, parameters = 40, 80
    z = torch.randn(samples, generator=generator, dtype=torch.float64, device="cpu")
    J = torch.randn(samples, parameters, generator=generator, dtype=torch.float64, device="cpu")
    Q = torch.randn(
        samples, parameters, parameters, generator=generator, dtype=torch.float64, device="cpu"
    )
    Q = 0.7 * (Q + Q.mT) / 2**0.5 / parameters
    model = second_order_regression(z, J / parameters**0.5, Q)
    top = float(torch.linalg.eigvalsh(model.kernel())[-1])
    figure = new_figure(11, 4.2)
    axes = figure.subplots(1, 2)
    for c, colour in zip((0.5, 1.0, 1.3, 1.5), COLOURS, strict=False):
        run = model.run(c / top, 600, curvature_every=2, k=1)
        axes[0].semilogy(run.loss.clamp(min=1e-12), color=colour, label=f"c = {c}")
        steps = 2 * np.arange(len(run.eigenvalues))
        axes[1].plot(steps, c / top * run.eigenvalues[:, 0], color=colour)
    axes[1].axhline(2, color=GREY, linestyle="--", linewidth=0.8)
    axes[0].set(xlabel="step", ylabel="loss", ylim=(1e-12, None))
    axes[1].set(xlabel="step", ylabel=r"$\eta\lambda$")
    axes[0].legend()
    return save_figure(figure, path, 110)


FIGURES: dict[str, Callable[[Path], Path]] = {
    figure.__name__: figure for figure in (plane, phases, curvature, quadratic, regression)
}


def named(name: str) -> Callable[[Path], Path]:
    """The function that draws figure ``name``.

    Raises:
        ValueError: no such figure.
    """
    _validate.require(
        name in FIGURES, "toy.draw", f"name must be one of {', '.join(FIGURES)}", repr(name)
    )
    return FIGURES[name]


def draw(name: str, path: Path | str) -> Path:
    """Draw figure ``name`` (a key of ``FIGURES``) into a PNG; needs matplotlib.

    Raises:
        ValueError: no such figure.
        RuntimeError: matplotlib is not installed.
    """
    return named(name)(Path(path))


def describe() -> list[tuple[str, Any]]:
    """Name and one-line description of every figure."""
    return [(name, (f.__doc__ or "").splitlines()[0]) for name, f in FIGURES.items()]
