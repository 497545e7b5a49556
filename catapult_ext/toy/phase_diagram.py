"""Phase diagrams of the one-sample toy model, at any resolution in bounded memory, resumable."""

from __future__ import annotations

import math
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
from catapult_ext.figures.phase_diagrams import phase_diagram_figure
from catapult_ext.toy.maps import PHASE_NAMES, ScalarRuns, run_scalar
from catapult_ext.toy.row_table import Arrays, RowTable, save_npz

_WHERE = "toy.phase_diagram"
LANES = 1 << 17  # points computed at a time: about 15 MB of state

# Second axis -> default range (low, high) and whether it is logarithmic.
AXES = {
    "width": (1e1, 1e12, True),
    "f0": (1e-3, 1e3, True),
    "b": (0.0, 2.2, False),
    "momentum": (0.0, 0.95, False),
}
FIELDS = {
    "eta_lambda": np.float64,
    "peak_loss": np.float64,
    "peak_step": np.int32,
    "diverged_at": np.int32,
    "phase": np.int8,
}


@dataclass(frozen=True, repr=False)
class PhaseDiagram(DrawnToFile):
    """A plane (c, axis); every array is (len(values), len(c)), row i belongs to ``values[i]``.

    Attributes:
        axis: "width", "f0", "b" (label: b = eta y / sqrt(W)) or "momentum".
        c: eta * lambda_0 of the columns.
        values: values of the rows.
        settings: the fixed ones: steps, width, f0, lambda0, ...
        eta_lambda: at the end; at the last accepted step where the run diverged.
        peak_loss: largest loss (f - y)^2 / 2 over the accepted steps.
        peak_step: when.
        diverged_at: step of the divergence, -1 for none.
        phase: index into ``catapult_ext.toy.PHASE_NAMES``.
        path: folder that holds the arrays (``diagram.npz``), or None.

    Examples:
        >>> diagram = cx.toy.phase_diagram("f0", resolution=(4, 6), steps=100)
        >>> diagram.axis, diagram.eta_lambda.shape == (len(diagram.values), len(diagram.c))
        ('f0', True)
    """

    axis: str
    c: np.ndarray
    values: np.ndarray
    settings: dict[str, Any]
    eta_lambda: np.ndarray
    peak_loss: np.ndarray
    peak_step: np.ndarray
    diverged_at: np.ndarray
    phase: np.ndarray
    path: Path | None = field(default=None, compare=False)

    def fractions(self) -> dict[str, float]:
        """Share of each phase in the plane."""
        counts = np.bincount(self.phase.ravel(), minlength=len(PHASE_NAMES))
        return {n: float(k) / self.phase.size for n, k in zip(PHASE_NAMES, counts, strict=True)}

    def save(self, path: Path | str) -> Path:
        """Write everything to an ``.npz`` file, one array at a time."""
        arrays: Arrays = {"c": self.c, "values": self.values}
        arrays |= {name: getattr(self, name) for name in FIELDS}
        arrays |= {"axis": np.array(self.axis), "phase_names": np.array(PHASE_NAMES)}
        arrays |= {f"setting_{name}": np.array(value) for name, value in self.settings.items()}
        return save_npz(path, arrays)

    def _line(self) -> str:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in self.fractions().items())
        place = "" if self.path is None else f", kept in {self.path}"
        return f"plane of {len(self.c)} c x {len(self.values)} {self.axis}: {shares}{place}"

    def _figure(self) -> Any:
        """Final eta * lambda, peak loss and phase side by side."""
        return phase_diagram_figure(self, PHASE_NAMES)


def phase_diagram(
    axis: str = "f0",
    *,
    c: tuple[float, float] | Tensor | np.ndarray = (0.02, 5.0),
    values: tuple[float, float] | Tensor | np.ndarray | None = None,
    resolution: int | tuple[int, int] = 500,
    steps: int = 1000,
    width: float = 1e6,
    f0: float = 1.0,
    b: float = 0.0,
    momentum: float = 0.0,
    lambda0: float = 2.0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    out: Path | str | None = None,
    fresh: bool = False,
    progress: Progress = None,
) -> PhaseDiagram:
    """Final curvature, peak loss and phase of the one-sample model over a plane (c, ``axis``).

    Args:
        axis: "width", "f0", "b" or "momentum": what changes from row to row.
        c: (low, high) of eta * lambda_0, spaced evenly, or the values themselves.
        values: (low, high) of ``axis`` (logarithmic for "width" and "f0"), or the values. Default:
            widths 10 to 1e12, f0 1e-3 to 1e3, b 0 to 2.2, momentum 0 to 0.95. |f0| is at most
            sqrt(width) lambda0 / 2 for any network; larger values of f0 are cut there.
        resolution: points per axis, or (columns, rows); for axes given as a range.
        steps: gradient descent steps per point.
        width: W where it does not vary.
        f0: output at the start where it does not vary.
        b: label eta y / sqrt(W) where it does not vary.
        momentum: heavy-ball beta where it does not vary.
        lambda0: curvature at the start; 2 is its mean for N(0, 1) weights.
        dtype: float32 or float64.
        device: where the points are computed; the arrays are on the CPU.
        out: a run folder: rows are stored as they finish, an interrupted call resumes where it
            stopped, and ``diagram.npz`` is written at the end. None keeps everything in memory.
        fresh: forget what ``out`` holds.
        progress: True for a bar, or a function of (rows done, rows); see
            :mod:`catapult_ext._progress`.

    Raises:
        TypeError: dtype is not float32 or float64.
        ValueError: an unknown axis, or values out of range.
        RunFolderError: ``out`` holds another diagram or cannot be written.

    Cost:
        About ten flops per point and step until the point has settled or diverged. Memory: 15 MB of
        state and 25 bytes per point; the latter on disk where ``out`` is given.

    Examples:
        >>> diagram = cx.toy.phase_diagram("f0", resolution=8, steps=100)
        >>> diagram.phase.shape
        (8, 8)
    """
    _validate.require(axis in AXES, _WHERE, f"axis must be one of {', '.join(AXES)}", repr(axis))
    if dtype not in _validate.FLOAT_DTYPES:
        _validate.fail(_WHERE, "dtype must be torch.float32 or torch.float64", dtype, TypeError)
    _validate.require(
        isinstance(steps, int) and steps >= 0, _WHERE, "steps must be an int >= 0", steps
    )
    pair = resolution if isinstance(resolution, (tuple, list)) else (resolution, resolution)
    _validate.require(len(pair) == 2, _WHERE, "resolution must be (columns, rows)", pair)
    _validate.integers(_WHERE, columns=pair[0], rows=pair[1])
    _validate.require(max(pair) <= 1 << 20, _WHERE, "resolution must be at most 2^20", pair)
    columns, rows = pair
    low, high, logarithmic = AXES[axis]
    c_grid = grid(_WHERE, "c", c, columns, False)
    given = (low, high) if values is None else values
    row_grid = grid(_WHERE, axis, given, rows, logarithmic)
    fixed = {"width": width, "f0": f0, "b": b, "momentum": momentum}
    del fixed[axis]
    settings = {"steps": steps, **fixed, "lambda0": lambda0, "dtype": str(dtype).split(".")[-1]}

    there = _validate.device(_WHERE, device)
    if there.type != "cpu":
        settings["device"] = there.type
    row_values = torch.from_numpy(row_grid)[:, None].to(dtype=dtype, device=there)
    c_values = torch.from_numpy(c_grid).to(dtype=dtype, device=there)
    # Without a step: what is out of range is refused before a folder is made.
    run_scalar(steps=0, **_arguments(axis, row_values, c_values.min(), settings, dtype))

    def compute(part: slice) -> Arrays:
        runs = _run_rows(axis, row_values[part], c_values, settings, dtype)
        return {name: getattr(runs, name).cpu().numpy() for name in FIELDS}

    shape = (len(row_grid), len(c_grid))
    table = RowTable(
        rows=shape[0],
        fields={name: (kind, (shape[1],)) for name, kind in FIELDS.items()},
        stride=max(1, LANES // shape[1]),
        compute=compute,
        where=_WHERE,
        progress=progress,
    )
    if out is None:
        return _diagram(axis, c_grid, row_grid, settings, table.in_memory(), None)
    config = {"kind": "toy phase diagram", "axis": axis, **settings}
    config |= {"c": c_grid.tolist(), "values": row_grid.tolist()}
    with RunFolder(out, config, fresh=fresh) as folder:
        stored = table.stored(folder)
        diagram = _diagram(axis, c_grid, row_grid, settings, stored, folder.path)
        diagram.save(folder.path / "diagram.npz")
        fractions = diagram.fractions()
        folder.write_json("summary.json", {"fractions": fractions, "shape": list(shape)})
    return diagram


def default_range(axis: str) -> tuple[float, float]:
    """The range of ``axis`` that :func:`phase_diagram` takes when none is given.

    Raises:
        ValueError: an unknown axis.
    """
    _validate.require(axis in AXES, _WHERE, f"axis must be one of {', '.join(AXES)}", repr(axis))
    return AXES[axis][:2]


def _diagram(
    axis: str,
    c: np.ndarray,
    values: np.ndarray,
    settings: dict[str, Any],
    arrays: Arrays,
    path: Path | None,
) -> PhaseDiagram:
    return PhaseDiagram(
        axis,
        c,
        values,
        settings,
        eta_lambda=arrays["eta_lambda"],
        peak_loss=arrays["peak_loss"],
        peak_step=arrays["peak_step"],
        diverged_at=arrays["diverged_at"],
        phase=arrays["phase"],
        path=path,
    )


def grid(where: str, name: str, given: Any, count: int, logarithmic: bool) -> np.ndarray:
    """The values of an axis that is given as (low, high) or as the values themselves.

    Raises:
        TypeError: not numbers.
        ValueError: not finite, empty, or a range that is none.
    """
    if isinstance(given, tuple) and len(given) == 2:
        _validate.number_lists(where, **{name: given})
        low, high = (float(x) for x in given)
        _validate.require(count >= 2, where, "resolution must be at least 2", count)
        ordered = -math.inf < low < high < math.inf
        _validate.require(
            ordered, where, f"{name} must be (low, high) with low < high, both finite", given
        )
        _validate.require(not logarithmic or low > 0, where, f"{name} must start above 0", low)
        return np.geomspace(low, high, count) if logarithmic else np.linspace(low, high, count)
    values = np.atleast_1d(
        _validate.array(where, name, given, torch.float64).detach().cpu().numpy()
    )
    _validate.require(
        values.ndim == 1 and values.size > 0, where, f"{name} must be a range or 1-D", values.shape
    )
    finite = np.isfinite(values)
    if not finite.all():
        _validate.fail(where, f"{name} must be finite", values[~finite][0])
    return values


def _run_rows(
    axis: str, row: Tensor, c: Tensor, settings: dict[str, Any], dtype: torch.dtype
) -> ScalarRuns:
    return run_scalar(steps=settings["steps"], **_arguments(axis, row, c, settings, dtype))


def _arguments(
    axis: str, row: Tensor, c: Tensor, settings: dict[str, Any], dtype: torch.dtype
) -> dict[str, Any]:
    chosen = {name: settings.get(name, row) for name in AXES}
    lambda0 = settings["lambda0"]
    width = torch.as_tensor(chosen["width"], dtype=dtype, device=c.device)
    f0 = torch.as_tensor(chosen["f0"], dtype=dtype, device=c.device)
    limit = width.sqrt() * lambda0 / 2
    # b = eta y / sqrt(W) is given, so that the label follows from the learning rate.
    eta = c / lambda0
    label = chosen["b"] * width.sqrt() / torch.where(eta > 0, eta, torch.ones_like(eta))
    return {
        "c": c,
        "width": width,
        "f0": torch.minimum(torch.maximum(f0, -limit), limit),
        "label": label,
        "momentum": chosen["momentum"],
        "lambda0": lambda0,
        "dtype": dtype,
    }
