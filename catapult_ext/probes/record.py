"""The row of a probe, shared by trackers, sweeps and runs, and records of bounded length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypedDict, TypeVar

import torch
from torch import Tensor

from catapult_ext._state import attributes, put

# What is measured at the probe steps of a sweep, a column each.
Observables = TypedDict(
    "Observables",
    {
        "lambda": float | None,  # top eigenvalue of the loss's Gauss-Newton matrix
        "lambda_error": float | None,  # its error bound
        "weight_norm": float,  # Euclidean norm of all parameters
        "train_accuracy": float | None,
        "test_accuracy": float | None,
        "test_loss": float | None,
        "inactive": float | None,  # share of pre-activations <= 0, mean over the layers
        "worst_inactive": float | None,  # the same of the layer with the largest share
        "dead_units": float | None,  # share of units inactive on every sample, of the worst layer
    },
    total=False,
)


class Row(Observables, total=False):
    """One probe; a key that is missing was not asked for, None could not be measured.

    A new observable is one key here, or in ``Observables`` to make it a column of every sweep, and
    the line that measures it.

    Attributes:
        step: number of steps made.
        time: eta * step.
        mark: why the probe was made: ``schedule``, ``time``, ``end`` or ``final``.
        loss: that the step uses.
        train_loss: on the training set, with the set's own batch statistics.
        values: top eigenvalues, descending.
        errors: their error bounds.
        index_check: see :class:`~catapult_ext.EigshResult`; a tracker's reads ``inherited since
            step n`` where the last checked probe was made after n steps.
        products: with the operator.
        flags: ``checked``; ``missed``: an error is above tol (``between`` in unchecked probes of a
            tracker); ``diverged``: inputs, outputs, the loss or products are not finite, and the
            values are NaN; ``failed``: the probe could not be made, and the values are NaN;
            ``rounding``: rounding of terms that cancel, as in a nearly dead net, leaves an error
            above that.
        eta: learning rate of the step that was taken, the largest of all groups; None where these
            differ and eigenvalues are not preconditioned.
        eta_lambda: eta times the top eigenvalue.
        preconditioned: whether eigenvalues are those of P^-1/2 G P^-1/2, P the optimizer's
            preconditioner; a group with a smaller rate counts by its share of the largest one.
        threshold: k* of the optimizer, with which eta_lambda compares.
        reason: why there is no threshold, or no row.
        sharpness: top Hessian eigenvalue; eta times that in ``self_stabilisation``.
        predicted: change of eta times the sharpness in this step, by self-stabilisation.
        top_shares: share of a squared loss in each eigenvector.
        drift: 1 - cosine between the trace kernel and that of the first probe.
        drift_norm: norm of their difference over that of the first.
    """

    step: int
    time: float
    mark: str
    loss: float
    train_loss: float
    values: list[float]
    errors: list[float]
    index_check: str
    products: int
    flags: list[str]
    eta: float | None
    eta_lambda: float | None
    preconditioned: bool
    threshold: float | None
    reason: str | None
    sharpness: float
    predicted: float
    top_shares: list[float] | None
    drift: float | None
    drift_norm: float | None


def columns(rows: Iterable[Row], names: Iterable[str] = ()) -> dict[str, list[Any]]:
    """The rows turned round: a list a name, None where a row lacks it.

    Args:
        rows: rows of one run.
        names: keys wanted; default: ``probe_steps`` and all of ``Observables``.
    """
    rows = list(rows)
    if names:
        return {name: [row.get(name) for row in rows] for name in names}
    steps = {"probe_steps": [row["step"] for row in rows]}
    return steps | columns(rows, Observables.__annotations__)


# An eigenvector that carries less than this share of the projected residual at the start is not
# asked whether its component grows: what other components leak into it would decide.
COUNTED_SHARE = 0.1


class Projection:
    """The residual's components along the eigenvectors of the kernel at the start.

    ``growth`` is the largest |component| over its own start, among the components that carry at
    least ``share`` of the start; ``norm`` that of the whole projection.
    """

    def __init__(self, vectors: Tensor, columns: int = 1, share: float = COUNTED_SHARE) -> None:
        self.vectors, self.share = vectors, share
        self.growth: list[list[float]] = [[] for _ in range(columns)]
        self.norm: list[list[float]] = [[] for _ in range(columns)]
        self._start: Tensor | None = None

    def follow(self, residual: Tensor, columns: list[int] | None = None) -> None:
        """Record (N*O, K) residuals, K the number of ``columns`` (default: all)."""
        which = list(range(residual.shape[1])) if columns is None else columns
        self.take(self.measure(residual, columns).tolist(), which)

    def measure(self, residual: Tensor, columns: list[int] | None = None) -> Tensor:
        """Growth and norm (2, K) of (N*O, K) residuals, on their device, in float64."""
        parts = (self.vectors.T @ residual).abs().double()
        if self._start is None:
            size = parts.norm(dim=0, keepdim=True)
            counted = (parts >= self.share * size) & (parts > 0)
            self._start = torch.where(counted, parts, torch.inf)
            self._size = torch.where(size > 0, size, torch.inf)[0]
        start, size = self._start, self._size
        if columns is not None:
            which = torch.tensor(columns, device=start.device)
            start, size = start[:, which], size[which]
        return torch.stack([(parts / start).amax(dim=0), parts.norm(dim=0) / size])

    def take(self, measured: list[list[float]], columns: list[int]) -> None:
        """Append what :meth:`measure` found, as numbers."""
        for i, column in enumerate(columns):
            self.growth[column].append(measured[0][i])
            self.norm[column].append(measured[1][i])


FIRST_ROWS = 4096  # of a long record, all kept; of the later ones at most as many, evenly spread
T = TypeVar("T")
_RECORD_STATE = ("rows", "_stride", "_count", "_passing")


class BoundedRecord(Generic[T]):
    """Rows appended for ever, in bounded memory: all of the first, evenly spread later ones.

    After the first 4096 rows every row is kept until there are 8192; then every second of the
    later ones goes, and from there on every second new one is kept, and so forth.  The last row is
    always there.
    """

    def __init__(self, first: int = FIRST_ROWS) -> None:
        self.rows: list[T] = []
        self._first, self._stride, self._count = first, 1, 0
        self._passing = False  # the last row is there only until the next one comes

    def append(self, row: T) -> None:
        """Keep ``row``, at least until the next one comes."""
        if self._passing:
            self.rows.pop()
        later = self._count - self._first
        self._count += 1
        self._passing = later >= 0 and later % self._stride != 0
        if not self._passing and len(self.rows) >= 2 * self._first:
            del self.rows[self._first + 1 :: 2]
            self._stride *= 2
            self._passing = later % self._stride != 0
        self.rows.append(row)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the rows, and how they are thinned."""
        return attributes(self, _RECORD_STATE)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` kept."""
        put(self, _RECORD_STATE, state)


DENSE_STEPS = 100  # every loss up to here is kept, then steps growing by LOG_FACTOR
LOG_FACTOR = 1.02


def thinned(count: int) -> list[int]:
    """Indices of a curve of ``count`` points that are kept: dense early on, and the last one."""
    kept = [0]
    while kept[-1] < count - 1:
        following = kept[-1] + 1 if kept[-1] < DENSE_STEPS else math.ceil(kept[-1] * LOG_FACTOR)
        kept.append(min(count - 1, following))
    return kept


TRACKED = (
    "step",
    "index_check",
    "products",
    "eta",
    "eta_lambda",
    "preconditioned",
    "threshold",
    "weight_norm",
    "inactive",
)


def table_rows(probes: Sequence[Row]) -> list[dict[str, Any]]:
    """Probes in columns that are numbers or text: ``lambda`` and ``error`` of the first pair.

    Those of the others are ``lambda_2``, ``error_2`` and so on, None where fewer were followed.
    """
    most = max((len(probe["values"]) for probe in probes), default=1)
    return [_table_row(probe, most) for probe in probes]


def _table_row(probe: Row, most: int) -> dict[str, Any]:
    row: dict[str, Any] = {name: probe.get(name) for name in TRACKED}
    pairs: list[tuple[float | None, float | None]]
    pairs = list(zip(probe["values"], probe["errors"], strict=True))
    pairs += [(None, None)] * (most - len(pairs))
    for rank, (value, error) in enumerate(pairs, 1):
        end = "" if rank == 1 else f"_{rank}"
        row[f"lambda{end}"], row[f"error{end}"] = value, error
    return row | {"flags": " ".join(probe["flags"])}
