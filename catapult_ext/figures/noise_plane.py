"""The picture of heavy ball with a random curvature over momentum and noise."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from catapult_ext.figures.style import new_figure


class Plane(Protocol):
    """The data drawn: see :class:`catapult_ext.toy.NoisePlane`."""

    @property
    def beta(self) -> np.ndarray:
        """Momentum of the rows."""

    @property
    def variance(self) -> np.ndarray:
        """Relative variance of the columns."""

    @property
    def mean_square(self) -> np.ndarray:
        """(rows, columns) edge of the second moment."""

    @property
    def lyapunov(self) -> np.ndarray:
        """(rows, columns) edge of typical paths."""


def noise_plane_figure(plane: Plane) -> Any:
    """Figure of both edges on one scale of colours, and their ratio.

    The line s2 / a^2 = (1 - beta) / (1 + beta) is where both parts of the mean-square formula are
    equal: the optimizer sets the edge left of it, the noise right of it.

    Args:
        plane: what is drawn.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    figure = new_figure(13.5, 4.2)
    from matplotlib.colors import LogNorm

    edges = np.concatenate([plane.mean_square.ravel(), plane.lyapunov.ravel()])
    edges = edges[np.isfinite(edges) & (edges > 0)]
    low, high = (edges.min(), edges.max()) if edges.size else (1.0, 1.0)
    scale = {"cmap": "viridis", "norm": LogNorm(low, max(high, low * 1.01))}
    panels: tuple[tuple[np.ndarray, dict[str, Any], str], ...] = (
        (plane.mean_square, scale, r"mean-square edge $\eta a$"),
        (plane.lyapunov, scale, r"Lyapunov edge $\eta a$"),
        (plane.lyapunov / plane.mean_square, {"cmap": "magma"}, "Lyapunov / mean-square"),
    )
    axes = figure.subplots(1, 3, sharey=True)
    crossing = (1 - plane.beta) / (1 + plane.beta)
    for ax, (image, style, title) in zip(axes, panels, strict=True):
        drawn = ax.pcolormesh(
            plane.variance, plane.beta, image, shading="nearest", rasterized=True, **style
        )
        figure.colorbar(drawn, ax=ax)
        ax.plot(crossing, plane.beta, color="white", linestyle="--", linewidth=0.9)
        logarithmic = plane.variance.min() > 0
        ax.set(title=title, xlabel=r"noise $s^2/a^2$", xscale="log" if logarithmic else "linear")
        if min(plane.mean_square.shape) > 1:
            ax.set(xlim=plane.variance[[0, -1]], ylim=plane.beta[[0, -1]])
    axes[0].set_ylabel(r"momentum $\beta$")
    return figure
