"""The labelled one-sample model in the long run: period doubling, chaos, divergence."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catapult_ext import _validate, ops
from catapult_ext._progress import Progress
from catapult_ext._store import RunFolder
from catapult_ext.figures.drawn import DrawnToFile
from catapult_ext.figures.phase_diagrams import bifurcation_figure
from catapult_ext.toy.row_table import Arrays, RowTable, save_npz

CHUNK = 1 << 20  # kept values computed at a time: 16 MB


@dataclass(frozen=True, repr=False)
class Bifurcation(DrawnToFile):
    """Long-time behaviour of the labelled model against b = eta |x| y / sqrt(W).

    Attributes:
        b: (R,).
        a: (R, keep) residual eta |x| (f - y) / sqrt(W) at consecutive late steps.
        eta_lambda: (R, keep).
        diverged_at: (R,) int64.
        path: folder of the arrays (``bifurcation.npz``), or None.

    Examples:
        >>> found = cx.toy.bifurcation(torch.tensor([0.5]), burn_in=100, keep=8)
        >>> int(found.diverged_at[0])
        -1
    """

    b: Tensor
    a: Tensor
    eta_lambda: Tensor
    diverged_at: Tensor
    path: Path | None = field(default=None, compare=False)

    def period(self, tolerance: float = 1e-6, longest: int = 64) -> Tensor:
        """(R,) int64: smallest period up to ``longest`` of the kept orbit; 0 for none.

        Raises:
            ValueError: fewer than 2 * longest steps were kept.
        """
        keep = self.a.shape[1]
        _validate.require(
            keep >= 2 * longest, "toy.Bifurcation.period", f"keep must be >= {2 * longest}", keep
        )
        found = torch.zeros(len(self.b), dtype=torch.int64, device="cpu")
        for p in range(longest, 0, -1):
            repeats = (self.a[:, p:] - self.a[:, :-p]).abs().amax(1) <= tolerance
            found = torch.where(repeats & (self.diverged_at < 0), p, found)
        return found

    def _line(self) -> str:
        low, high = self.b.min().item(), self.b.max().item()
        gone = int((self.diverged_at >= 0).sum())
        place = "" if self.path is None else f", kept in {self.path}"
        return f"{len(self.b)} labels b from {low:.4g} to {high:.4g}, {gone} divergent{place}"

    def _figure(self) -> Any:
        """Eta * lambda and the residual of the kept orbits."""
        return bifurcation_figure(self)


def bifurcation(
    b: Tensor,
    *,
    burn_in: int = 4000,
    keep: int = 256,
    start: float = 0.1,
    aligned: bool = True,
    out: Path | str | None = None,
    fresh: bool = False,
    progress: Progress = None,
) -> Bifurcation:
    """Run the labelled one-sample model for ``burn_in`` steps and keep the next ``keep`` (float64).

    Below b = 1 gradient descent converges; beyond, no minimum has eta * lambda < 2, the two layers
    align (M = 0) and the residual follows a' = a ((1 - a)^2 - b (2 - a)), which for s = sqrt(a + b)
    is the cubic map s' = (1 + b) s - s^3: period two from b = 1, then doublings at sqrt(5) - 1 =
    1.2361, 1.2880, 1.2992, ..., chaos, and divergence beyond b = 2 (Kalra et al., arXiv
    2311.02076).

    Args:
        b: (R,) labels, positive; on their device the steps are made, and the results are returned.
        burn_in: steps before the first one kept; close to a doubling many are needed.
        keep: steps kept.
        start: residual a at the start.
        aligned: start with equal layers, on the manifold M = 0; otherwise off it by a tenth.
        out: a run folder: rows are stored as they finish, an interrupted call resumes where it
            stopped, and ``bifurcation.npz`` is written at the end. None keeps everything in memory.
        fresh: forget what ``out`` holds.
        progress: True for a bar, or a function of (labels done, labels); see
            :mod:`catapult_ext._progress`.

    Raises:
        ValueError: b not positive, start <= -b, or keep < 1.
        RunFolderError: ``out`` holds something else or cannot be written.

    Cost:
        About ten flops per label and step. Memory: 30 MB of state and 16 bytes per label and kept
        step; the latter on disk where ``out`` is given.

    Examples:
        >>> found = cx.toy.bifurcation(torch.linspace(0.1, 1.0, 5), burn_in=100, keep=8)
        >>> found.eta_lambda.shape
        torch.Size([5, 8])
    """
    where = "toy.bifurcation"
    b = _validate.array(where, "b", b, torch.float64)
    _validate.integers(where, burn_in=burn_in, keep=keep)
    _validate.numbers(where, start=start)
    _validate.require(burn_in >= 0, where, "burn_in must be >= 0", burn_in)
    _validate.require(keep <= 1 << 40, where, "keep must be at most 2^40", keep)
    _validate.require(b.dim() == 1, where, "b must have shape (R,)", tuple(b.shape))
    fits = (b > 0) & b.isfinite()
    if not bool(fits.all()):
        _validate.fail(where, "b must be positive and finite", b[~fits][0].item())
    _validate.require(bool((b + start > 0).all()), where, "start must be above -b", start)
    _validate.require(keep >= 1, where, "keep must be at least 1", keep)
    tilt = 1.0 if aligned else 1.1

    def compute(part: slice) -> Arrays:
        label = b[part]
        root = (label + start).sqrt()
        first = ops.toy_scalar(root * tilt, root / tilt, burn_in, b=label, early_exit=False)
        last = ops.toy_scalar(first.h, first.k, keep - 1, b=label, record_every=1)
        late = torch.where(last.diverged_at >= 0, last.diverged_at + burn_in, -1)
        diverged_at = torch.where(first.diverged_at >= 0, first.diverged_at, late)
        found = {"a": last.record_a, "eta_lambda": last.record_v, "diverged_at": diverged_at}
        return {name: value.cpu().numpy() for name, value in found.items()}

    table = RowTable(
        rows=len(b),
        fields={
            "a": (np.float64, (keep,)),
            "eta_lambda": (np.float64, (keep,)),
            "diverged_at": (np.int64, ()),
        },
        stride=max(1, CHUNK // keep),
        compute=compute,
        where=where,
        unit="labels",
        progress=progress,
    )
    if out is None:
        return _result(b, table.in_memory(), None)
    config = {"kind": "toy bifurcation", "b": b.tolist(), "burn_in": burn_in, "keep": keep}
    config |= {"start": start, "aligned": aligned}
    with RunFolder(out, config, fresh=fresh) as folder:
        arrays = table.stored(folder)
        save_npz(folder.path / "bifurcation.npz", {"b": b.cpu().numpy(), **arrays})
        folder.write_json("summary.json", {"diverged": int((arrays["diverged_at"] >= 0).sum())})
        return _result(b, arrays, folder.path)


def _result(b: Tensor, arrays: Arrays, path: Path | None) -> Bifurcation:
    return Bifurcation(
        b=b, path=path, **{n: torch.from_numpy(v).to(b.device) for n, v in arrays.items()}
    )
