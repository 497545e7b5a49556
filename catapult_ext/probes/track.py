"""Top eigenvalues along the checkpoints of a training, warm-started from one to the next."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._module_copy import own_copy
from catapult_ext._shown import number
from catapult_ext.eig import TopTracker
from catapult_ext.figures.drawn import Drawn
from catapult_ext.figures.track import track_figure
from catapult_ext.probes.checkpoints import (
    CheckpointError,
    checkpoint_files,
    load_checkpoint,
    name_of,
)
from catapult_ext.probes.quantities import check_quantity, operator_of

_WHERE = "track"

Source = Path | str | Mapping[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Track(Drawn, saved=True):
    """Top eigenvalues by checkpoint.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> data = torch.randn(8, 3), torch.randn(8, 1)
        >>> found = cx.track(net, {key: 2 * t for key, t in net.state_dict().items()}, "mse", data)
        >>> found.rows[0]["values"][0] > 0, found.steps
        (True, [0])

    Attributes:
        rows: one dictionary per checkpoint: ``checkpoint`` (its name), ``values``, ``errors``,
            ``index_check``, ``products``, ``converged``, as :class:`~catapult_ext.TopTracker`
            gives them.
        quantity: operator: ``"ggn"``, ``"hessian"`` or ``"ntk"``.
        k: number of eigenvalues.
    """

    rows: list[dict[str, Any]]
    quantity: str
    k: int

    @property
    def steps(self) -> list[int]:
        """The last number in each checkpoint's name, if these increase; else 0, 1, 2, ..."""
        found = [re.findall(r"\d+", row["checkpoint"]) for row in self.rows]
        steps = [int(numbers[-1]) for numbers in found if numbers]
        grows = all(a < b for a, b in itertools.pairwise(steps))
        return steps if len(steps) == len(found) and grows else list(range(len(found)))

    def __len__(self) -> int:
        return len(self.rows)

    def _line(self) -> str:
        if not self.rows:
            return f"0 checkpoints, {self.quantity}"
        first, last = (self.rows[i]["values"][0] for i in (0, -1))
        spent = sum(row["products"] for row in self.rows)
        return (
            f"{len(self.rows)} checkpoints, top eigenvalue of the {self.quantity} from "
            f"{number(first)} to {number(last)} ({spent} products)"
        )

    def _table(self) -> list[dict[str, Any]]:
        return [track_cells(row) for row in self.rows]

    def _figure(self) -> Any:
        """Eigenvalues with their errors by checkpoint."""
        return track_figure(self.rows, self.steps, self.quantity)


def track_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of :class:`Track` as a line of its table."""
    cells = {"checkpoint": row["checkpoint"]}
    for rank, (value, error) in enumerate(zip(row["values"], row["errors"], strict=True)):
        cells[f"lambda_{rank + 1}"], cells[f"error_{rank + 1}"] = value, error
    return cells | {"products": row["products"], "index_check": row["index_check"]}


@no_autocast()
def track(
    model: nn.Module,
    checkpoints: Source | Iterable[Source],
    loss: object,
    data: Any,
    k: int = 1,
    *,
    quantity: str = "ggn",
    tol: float = 1e-3,
    check_every: int = 10,
    seed: int = 0,
    tell: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> Track:
    """Follow the k largest eigenvalues through the checkpoints of one model.

    Args:
        model: module of the checkpoints' architecture, in train or eval mode as it is to be
            evaluated; it is not changed.
        checkpoints: a file (``torch.save`` or safetensors), a folder of them (natural order of
            the names), a state dict, or an iterable of these.
        loss: see :func:`catapult_ext.losses.resolve`.
        data: ``(x, y)``, or another form that the operators take; the same for all checkpoints.
        k: number of eigenvalues.
        quantity: ``"ggn"``, ``"hessian"`` or ``"ntk"``.
        tol: relative error of the eigenvalues.
        check_every: every how many checkpoints a solve is checked (``index_check``
            ``"random(0.99)"``).  Solves in between are warm-started (``"inherited"``), unless an
            eigenvalue has moved by a quarter: see :class:`~catapult_ext.TopTracker`.
        seed: seed of the random vectors.
        tell: called with each row as soon as it is measured.
        **options: options of the operator: ``params``, ``forward``, ``memory_budget``, ...

    Returns:
        :class:`Track`.

    Raises:
        CheckpointError: a checkpoint of another model (the message lists missing and unexpected
            keys and shapes), a file that cannot be read, or a checkpoint whose model or loss is
            not finite.  It is a ValueError; its ``found`` holds the results of earlier checkpoints.
        TypeError, ValueError: as the operators and the tracker.

    Cost:
        Per checkpoint one linearization and about 3 products, or 15 for a checked solve.

    Example:
        >>> import catapult_ext as cx
        >>> data = cx.data.digits(train=32)
        >>> net = cx.models.fully_connected(64, 10, width=8, depth=1)
        >>> len(cx.track(net, [net.state_dict()], "half_mse", data.train))
        1
    """
    v.module(_WHERE, model)
    check_quantity(_WHERE, quantity)
    tracker = TopTracker(k, tol=tol, check_every=check_every, seed=seed)
    still = own_copy(model)
    found = Track([], quantity, int(k))
    for name, source in _sources(checkpoints):
        try:
            load_checkpoint(still, source, _WHERE)
        except CheckpointError as error:
            error.found = found
            raise
        try:
            operator = operator_of(still, loss, data, quantity, {**options, "seed": seed})
            top = tracker.update(operator)
        except v.NotFinite as error:  # a run that diverged: what was found before it is kept
            need = "must be of a run that is finite (leave it out, and those after)"
            text = f"catapult_ext.{_WHERE}: checkpoint {name} {need}, got {error}"
            refused = CheckpointError(text)
            refused.found = found
            raise refused from error
        row = {
            "checkpoint": name,
            "values": top.eigenvalues.tolist(),
            "errors": top.errors.tolist(),
            "index_check": top.index_check,
            "products": top.matvecs,
            "converged": top.converged,
        }
        found.rows.append(row)
        if tell is not None:
            tell(row)
    return found


def _sources(checkpoints: Any) -> Iterable[tuple[str, Source]]:
    """Every checkpoint with its name."""
    if isinstance(checkpoints, (str, Path)):
        for file in checkpoint_files(_WHERE, checkpoints):
            yield name_of(file), file
        return
    if isinstance(checkpoints, Mapping):
        checkpoints = [checkpoints]
    if not isinstance(checkpoints, Iterable):
        kind = type(checkpoints).__name__
        v.fail(_WHERE, "checkpoints must be paths or state dicts", kind, TypeError)
    for at, source in enumerate(checkpoints):
        if isinstance(source, Mapping):
            yield str(at), source
        elif isinstance(source, (str, Path)):
            yield from _sources(source)
        else:
            kind = type(source).__name__
            v.fail(_WHERE, "checkpoints must be paths or state dicts", kind, TypeError)
