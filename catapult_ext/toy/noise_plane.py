"""The plane (momentum, noise) of heavy ball with a random curvature: both edges, resumable."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catapult_ext import _validate
from catapult_ext._progress import Progress
from catapult_ext._store import RunFolder
from catapult_ext.figures.drawn import DrawnToFile
from catapult_ext.figures.noise_plane import noise_plane_figure
from catapult_ext.ops.toy_lyapunov import Noise
from catapult_ext.toy.lyapunov import check_edges, lyapunov_edge
from catapult_ext.toy.mean_square import mean_square_edge, noisy_momentum
from catapult_ext.toy.phase_diagram import grid
from catapult_ext.toy.row_table import Arrays, RowTable, save_npz

_WHERE = "toy.noise_plane"
FIELDS = ("mean_square", "lyapunov", "error")
MOMENTA = (0.0, 0.99)
VARIANCES = (1e-2, 1e2)


@dataclass(frozen=True, repr=False)
class NoisePlane(DrawnToFile):
    """Edges of heavy ball with a random curvature of mean a and variance s2.

    Every array is (len(beta), len(variance)). Edges are values of eta a, the learning rate in units
    of 1 / a.

    Attributes:
        beta: momentum of the rows.
        variance: s2 / a^2 of the columns.
        settings: the arguments noise, tolerance, paths, max_steps and seed.
        mean_square: edge below which the second moment decays (exact).
        lyapunov: edge below which almost every path decays (sampled).
        error: error bar of ``lyapunov``, 95 %.
        path: folder of the arrays (``plane.npz``), or None.

    Examples:
        >>> plane = cx.toy.noise_plane(beta=(0.0, 0.5), resolution=2, tolerance=0.5)
        >>> plane.lyapunov.shape == plane.error.shape
        True
    """

    beta: np.ndarray
    variance: np.ndarray
    settings: dict[str, Any]
    mean_square: np.ndarray
    lyapunov: np.ndarray
    error: np.ndarray
    path: Path | None = field(default=None, compare=False)

    def save(self, path: Path | str) -> Path:
        """Write everything to an ``.npz`` file."""
        arrays: Arrays = {"beta": self.beta, "variance": self.variance}
        arrays |= {name: getattr(self, name) for name in FIELDS}
        arrays |= {f"setting_{name}": np.array(value) for name, value in self.settings.items()}
        return save_npz(path, arrays)

    def _line(self) -> str:
        place = "" if self.path is None else f", kept in {self.path}"
        return f"edges of {len(self.beta)} momenta x {len(self.variance)} noises{place}"

    def _figure(self) -> Any:
        """Both edges and their ratio side by side."""
        return noise_plane_figure(self)


def noise_plane(
    *,
    beta: tuple[float, float] | Tensor | np.ndarray = MOMENTA,
    variance: tuple[float, float] | Tensor | np.ndarray = VARIANCES,
    resolution: int | tuple[int, int] = 64,
    noise: Noise = "normal",
    tolerance: float = 0.02,
    paths: int = 64,
    max_steps: int = 1 << 20,
    seed: int = 0,
    out: Path | str | None = None,
    fresh: bool = False,
    progress: Progress = None,
) -> NoisePlane:
    """Mean-square and Lyapunov edge of heavy ball over momentum and noise.

    See :func:`mean_square_edge` and :func:`lyapunov_edge`.

    Args:
        beta: (low, high) of the momentum, spaced evenly, or the values themselves.
        variance: (low, high) of the curvature's variance over its squared mean, spaced
            logarithmically, or the values. A batch of B inputs with Gaussian entries has 2 / B.
        resolution: points per axis, or (columns, rows); for axes given as a range.
        noise: "normal", "uniform" or "two-point".
        tolerance: largest relative bar of the Lyapunov edge.
        paths: sampled paths per point.
        max_steps: longest path.
        seed: seed of the draws; all points share them, so neighbours err alike.
        out: a run folder: rows are stored as they finish, an interrupted call resumes where it
            stopped, and ``plane.npz`` is written at the end. None keeps everything in memory.
        fresh: forget what ``out`` holds.
        progress: True for a bar, or a function of (rows done, rows); see
            :mod:`catapult_ext._progress`.

    Raises:
        TypeError: arguments of the wrong type.
        ValueError: values out of range.
        RunFolderError: ``out`` holds another plane or cannot be written.

    Cost:
        Per row that of :func:`lyapunov_edge`; rows near beta = 1 take longest.

    Examples:
        >>> plane = cx.toy.noise_plane(beta=(0.0, 0.5), resolution=2, tolerance=0.5)
        >>> plane.mean_square.shape
        (2, 2)
    """
    pair = resolution if isinstance(resolution, (tuple, list)) else (resolution, resolution)
    _validate.require(len(pair) == 2, _WHERE, "resolution must be (columns, rows)", pair)
    _validate.integers(_WHERE, columns=pair[0], rows=pair[1])
    _validate.require(max(pair) <= 1 << 20, _WHERE, "resolution must be at most 2^20", pair)
    columns = grid(_WHERE, "variance", variance, pair[0], True)
    rows = grid(_WHERE, "beta", beta, pair[1], False)
    settings: dict[str, Any] = {"noise": noise, "tolerance": tolerance, "paths": paths}
    settings |= {"max_steps": max_steps, "seed": seed}
    momenta, variances = torch.from_numpy(rows), torch.from_numpy(columns)
    # What is out of range is refused before a folder is made.
    cases = noisy_momentum(_WHERE, beta=momenta[:, None], variance=variances, mean=1.0)
    check_edges(_WHERE, cases, noise, tolerance, paths, max_steps, seed)

    def compute(part: slice) -> Arrays:
        here = momenta[part, None]
        sampled = lyapunov_edge(here, variances, **settings)
        found = (mean_square_edge(here, variances), sampled.value, sampled.error)
        return {name: t.numpy() for name, t in zip(FIELDS, found, strict=True)}

    table = RowTable(
        rows=len(rows),
        fields={name: (np.float64, (len(columns),)) for name in FIELDS},
        stride=1,
        compute=compute,
        where=_WHERE,
        progress=progress,
    )

    def plane_of(arrays: Arrays, path: Path | None = None) -> NoisePlane:
        edges = (arrays["mean_square"], arrays["lyapunov"], arrays["error"])
        return NoisePlane(rows, columns, settings, *edges, path)

    if out is None:
        return plane_of(table.in_memory())
    config = {"kind": "toy noise plane", **settings}
    config |= {"beta": rows.tolist(), "variance": columns.tolist()}
    with RunFolder(out, config, fresh=fresh) as folder:
        plane = plane_of(table.stored(folder), folder.path)
        plane.save(folder.path / "plane.npz")
        widest = float((plane.error / plane.lyapunov).max())
        folder.write_json("summary.json", {"largest relative bar": widest})
    return plane
