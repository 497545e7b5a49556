"""The curvature of every layer of a model: top eigenvalues, trace and norm of each block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._shown import number
from catapult_ext.eig import EigshResult, eigsh, hutchinson_trace
from catapult_ext.figures.by_layer import by_layer_figure
from catapult_ext.figures.drawn import Drawn
from catapult_ext.linops import LinearOperator
from catapult_ext.probes.blocks import Block, each_block, grouped
from catapult_ext.probes.quantities import check_quantity, operator_of

_WHERE = "by_layer"
_VECTORS = 16  # random vectors of a norm, and of a trace that is not exact


@dataclass(frozen=True, eq=False, repr=False)
class ByLayer(Drawn, saved=True):
    """The diagonal blocks of a curvature matrix.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> found = cx.by_layer(net, "half_mse", (torch.randn(8, 3), torch.randn(8, 1)))
        >>> [row["block"] for row in found.rows], found["2"]["parameters"], found["0"]["trace"] > 0
        (['0', '2'], 5, True)

    Attributes:
        rows: one dictionary per block, in the order of the model: ``block``, ``parameters`` (their
            number), ``values`` and ``errors`` (its k largest eigenvalues and their bounds, as
            :func:`catapult_ext.eigsh` gives them), ``trace`` and ``trace_error``, ``norm`` and
            ``norm_error`` (Frobenius), ``index_check`` and ``converged``.  The error of
            an exact trace or norm is 0; other errors of traces and norms are standard errors.
        quantity: ``"GGN"``, ``"Hessian"``, ``"NTK"``, or the name of the operator.
        k: number of eigenvalues of each block (fewer if it has fewer parameters).
    """

    rows: list[dict[str, Any]]
    quantity: str
    k: int

    @property
    def trace(self) -> float:
        """Trace of the whole matrix: the sum over the blocks."""
        return math.fsum(row["trace"] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        """The names of the blocks, as a dictionary gives its keys."""
        return iter([row["block"] for row in self.rows])

    def __getitem__(self, block: str) -> dict[str, Any]:
        """The row of a block, by its name.

        Raises:
            KeyError: no block of this name.
        """
        for row in self.rows:
            if row["block"] == block:
                return row
        raise KeyError(f"catapult_ext.ByLayer: no block {block!r}")

    def _line(self) -> str:
        top = max(self.rows, key=lambda row: row["values"][0])
        return (
            f"{len(self.rows)} blocks of the {self.quantity}: largest eigenvalue "
            f"{number(top['values'][0])} +- {top['errors'][0]:.1g} in {top['block']}, "
            f"trace {number(self.trace)}"
        )

    def _table(self) -> list[dict[str, Any]]:
        return [self._cells(row) for row in self.rows]

    def _cells(self, row: dict[str, Any]) -> dict[str, Any]:
        cells = {"block": row["block"], "parameters": row["parameters"]}
        for rank in range(self.k):
            held = rank < len(row["values"])
            cells[f"lambda_{rank + 1}"] = row["values"][rank] if held else None
            cells[f"error_{rank + 1}"] = row["errors"][rank] if held else None
        whole = self.trace
        cells["trace"] = row["trace"]
        cells["share"] = row["trace"] / whole if whole else None
        cells["norm"] = row["norm"]
        return cells

    def _figure(self) -> Any:
        """Eigenvalues with their errors, and traces, a line for each block."""
        return by_layer_figure(self.rows, self.quantity)


@no_autocast()
def by_layer(
    model: nn.Module | LinearOperator,
    loss: object = None,
    data: Any = None,
    k: int = 1,
    *,
    quantity: str = "ggn",
    blocks: str | int | Mapping[str, Any] = "module",
    tol: float = 1e-2,
    confidence: float | None = 0.99,
    seed: int = 0,
    **options: Any,
) -> ByLayer:
    """Top eigenvalues, trace and norm of the diagonal block of every layer.

    Args:
        model: any module; or an existing operator (NTK, GGN, Hessian, ...), without ``loss``,
            ``data``, ``quantity`` and ``options``.
        loss: see :func:`catapult_ext.losses.resolve`.
        data: ``(x, y)``, or another form that the operators take.
        k: eigenvalues of each block.
        quantity: ``"ggn"`` (J' H_L J), ``"hessian"``, or ``"ntk"`` (J J' restricted to the block's
            parameters, sum convention).
        blocks: ``"module"`` (a block for each module that holds parameters), ``"parameter"``, an
            int (number of leading name parts: 1 gives the model's direct children), or a mapping
            from block names to names, patterns or modules, as in ``params=``.
        tol: relative error of the eigenvalues.
        confidence: confidence of their index checks, as in :func:`catapult_ext.eigsh`.
        seed: seed of the random vectors.
        **options: options of the operator: ``params``, ``forward``, ``memory_budget``, ...

    Returns:
        :class:`ByLayer`.

    Raises:
        TypeError, ValueError: as the operators and :func:`catapult_ext.eigsh`; loss, data,
            another quantity or options together with an operator; unknown quantity; a block without
            parameters.

    Cost:
        Kernels and Gauss-Newton matrices: one forward pass, O backward passes for the rows of all
        blocks together, and products with the rows of each block in turn.  A Hessian, a batch norm
        on batch statistics, chunks of samples, or O above 16 times the number of blocks: products
        of the whole operator for every block.

    Example:
        >>> import catapult_ext as cx
        >>> data = cx.data.digits(train=64)
        >>> net = cx.models.fully_connected(64, 10, width=32, depth=2)
        >>> len(cx.by_layer(net, "half_mse", data.train))
        3
    """
    v.integers(_WHERE, k=k, seed=seed)
    v.numbers(_WHERE, tol=tol)
    v.require(k >= 1, _WHERE, "k must be >= 1", k)
    v.require(0 < tol < 1, _WHERE, "tol must be in (0, 1)", tol)
    operator = _operator(model, loss, data, quantity, options, seed)
    groups = grouped(operator.parameter_names or (), blocks, _WHERE)
    found: dict[str, dict[str, Any]] = {}

    def take(block: Block) -> None:
        found[block.name] = _row(block, int(k), tol, confidence, seed)

    each_block(operator, groups, take)
    return ByLayer([found[name] for name in groups], operator.name, int(k))


def _operator(
    model: Any, loss: object, data: Any, quantity: str, options: dict[str, Any], seed: int
) -> LinearOperator:
    if isinstance(model, LinearOperator):
        given = loss is not None or data is not None or bool(options)
        given = given or quantity not in ("ggn", model.name.lower())
        wanted = "loss, data, quantity and options belong to a module, "
        wanted += "and must be left out for an operator"
        v.require(not given, _WHERE, wanted, model.name)
        return model
    v.module(_WHERE, model)
    check_quantity(_WHERE, quantity)
    return operator_of(model, loss, data, quantity, {**options, "seed": seed})


def _row(block: Block, k: int, tol: float, confidence: float | None, seed: int) -> dict[str, Any]:
    count = min(k, block.size, block.operator.shape[0])
    found = eigsh(block.operator, count, tol=tol, seed=seed, confidence=confidence)
    trace, trace_error = block.trace, 0.0
    if trace is None:
        estimate = hutchinson_trace(block.operator, _VECTORS, seed=seed)
        trace, trace_error = estimate.value.item(), estimate.error.item()
    norm, norm_error = _norm(block.operator, found, seed)
    return {
        "block": block.name,
        "parameters": block.size,
        "values": found.eigenvalues.tolist(),
        "errors": found.errors.tolist(),
        "trace": trace,
        "trace_error": trace_error,
        "norm": norm,
        "norm_error": norm_error,
        "index_check": found.index_check,
        "converged": found.converged,
    }


def _norm(operator: LinearOperator | Tensor, found: EigshResult, seed: int) -> tuple[float, float]:
    """The Frobenius norm and its standard error: exact in the span of the eigenvectors found.

    |A|_F^2 = |A V|_F^2 + |A (I - V V')|_F^2, the second by random signs (Meyer et al. 2021).
    """
    if isinstance(operator, Tensor):
        return float(torch.linalg.matrix_norm(operator.double())), 0.0
    vectors = found.eigenvectors.double()
    top = float((found.eigenvalues.double().square() + found.residuals.double().square()).sum())
    draw = torch.Generator().manual_seed(seed)
    shape = (operator.shape[0], _VECTORS)
    signs = torch.randint(0, 2, shape, generator=draw, dtype=torch.float64, device="cpu") * 2 - 1
    signs = signs.to(vectors.device)
    rest = (signs - vectors @ (vectors.T @ signs)).to(operator.dtype)
    squares = (operator @ rest).double().square().sum(0)
    value = math.sqrt(max(top + float(squares.mean()), 0.0))
    error = float(squares.std()) / math.sqrt(_VECTORS)
    return value, error / (2 * value) if value > 0 else 0.0
