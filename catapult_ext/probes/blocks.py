"""Diagonal blocks of a curvature matrix, a group of parameters each, from one linearized model.

The block of parameters b of a kernel or Gauss-Newton matrix has the non-zero eigenvalues of
S' J_b J_b' S, (N*O, N*O), with H_L = S S'.  One pass over the samples gives the rows of J_b of all
blocks (:mod:`catapult_ext.linops.tracing.block_rows`), so that no block needs products with the
whole model.  Where that structure is unknown, a block is applied by products of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._free_memory import free_bytes
from catapult_ext.linops.base import LinearOperator
from catapult_ext.linops.engines import sample_rows
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.ggn import GGN, weighed
from catapult_ext.linops.model.memory_meter import LIMITS
from catapult_ext.linops.model.state import selected_names
from catapult_ext.linops.ntk import NTK
from catapult_ext.linops.tracing.block_rows import Rows, each_group, pieces
from catapult_ext.linops.tracing.parameter_uses import Structured
from catapult_ext.losses import OutputFactor

_SMALL = 256  # rows or columns up to which a block is written out: cheaper than products with it
_PASSES = 16  # products of the whole that the top eigenvalue of a block would take
_MOST = 4 << 30  # bytes that are taken where nobody set a budget, and twice as many are free
_INSIDE = "parametrizations"  # the place inside a module where torch puts what makes its weights
BY = ("module", "parameter")

Groups = Mapping[str, Sequence[str]]


@dataclass(frozen=True, eq=False)
class Block:
    """One diagonal block.

    Attributes:
        name: name of the block.
        size: number of its parameters, P_b.
        operator: the block, (P_b, P_b), or a smaller or larger matrix with the same non-zero
            eigenvalues.
        trace: exact; None where it is not known.
    """

    name: str
    size: int
    operator: LinearOperator | Tensor
    trace: float | None


class RowsOperator(LinearOperator):
    """R R' for rows R (m, q), kept in pieces of columns that stay in a cache for both products."""

    name = "Block"

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts, first = parts, parts[0]
        self.shape = (len(first), len(first))
        self.dtype, self.device = first.dtype, first.device

    @property
    def skew_is_rounding(self) -> bool:
        """True: R R' is symmetric."""
        return True

    def _matmat(self, vectors: Tensor) -> Tensor:
        out = torch.zeros_like(vectors)
        for part in self._parts:
            out.addmm_(part, part.T @ vectors)
        return out


class BlockOfProducts(LinearOperator):
    """A diagonal block (P_b, P_b) of an operator over the parameters, by its products."""

    def __init__(self, operator: LinearOperator, places: Sequence[slice]) -> None:
        self._operator, self._places = operator, places
        self._entries = sum(shape.numel() for shape in operator.parameter_shapes or ())
        size = sum(place.stop - place.start for place in places)
        self.name, self.shape = f"block of {operator.name}", (size, size)
        self.dtype, self.device = operator.dtype, operator.device
        self.columns = operator.columns

    @property
    def rounding_unit(self) -> float:
        """Rounding unit of the whole operator."""
        return self._operator.rounding_unit

    @property
    def skew_is_rounding(self) -> bool:
        """``skew_is_rounding`` of the whole operator."""
        return self._operator.skew_is_rounding

    def _widened(self, vectors: Tensor) -> Tensor:
        whole = vectors.new_zeros(self._entries, vectors.shape[1])
        sizes = [place.stop - place.start for place in self._places]
        for place, part in zip(self._places, vectors.split(sizes), strict=True):
            whole[place] = part
        return whole

    def _matmat(self, vectors: Tensor) -> Tensor:
        found = self._operator._product(self._widened(vectors))
        return torch.cat([found[place] for place in self._places])

    def half_product(self, vectors: Tensor) -> Tensor | None:
        """Half product of the whole operator with vectors that are padded with zeros."""
        return self._operator.half_product(self._widened(vectors))


class BlockOfKernel(BlockOfProducts):
    """J_b J_b' of a kernel, (N*O, N*O), by products with all of J."""

    _operator: NTK

    def __init__(self, operator: NTK, places: Sequence[slice]) -> None:
        super().__init__(operator, places)
        self.shape = operator.shape

    def _matmat(self, vectors: Tensor) -> Tensor:
        pulled = self.half_product(vectors)
        return self._operator.linearization.jvp(self._widened(pulled))

    def half_product(self, vectors: Tensor) -> Tensor:
        """J_b' u: (N*O, K) to (P_b, K)."""
        found = self._operator.linearization.vjp(vectors)
        return torch.cat([found[place] for place in self._places])


def grouped(names: Sequence[str], by: str | int | Mapping[str, Any], where: str) -> Groups:
    """Parameters by block, in order.

    Args:
        names: names of the parameters.
        by: ``"module"`` (the module that holds them), ``"parameter"``, so many leading parts of
            their names, or a mapping from names of blocks to patterns as ``params=`` takes them.
        where: the public function named in errors.

    Raises:
        TypeError, ValueError: another kind, a pattern that fits none, a parameter in two blocks.
    """
    if isinstance(by, Mapping):
        chosen = {str(key): selected_names(list(names), p, where) for key, p in by.items()}
        v.require(bool(chosen), where, "blocks must name at least one block", "none")
        taken = [name for members in chosen.values() for name in members]
        twice = sorted({name for name in taken if taken.count(name) > 1})
        v.require(not twice, where, "a parameter must lie in one block", ", ".join(twice[:3]))
        return chosen
    wanted = "blocks must be 'module', 'parameter', an int >= 1 or a mapping"
    depth = not isinstance(by, bool) and isinstance(by, int) and by >= 1
    v.require(depth or by in BY, where, wanted, repr(by))
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        if isinstance(by, int):
            parts = parts[:by]
        elif by == "module":
            parts = parts[: parts.index(_INSIDE)] if _INSIDE in parts else parts[:-1] or parts
        found.setdefault(".".join(parts), []).append(name)
    return found


def each_block(operator: LinearOperator, groups: Groups, take: Callable[[Block], None]) -> None:
    """Give every diagonal block of ``operator`` to ``take``, in any order.

    Args:
        operator: an NTK (whose block is J_b J_b'), or an operator over the parameters.
        groups: names of parameters by block.
        take: called once for each.

    Raises:
        ValueError: an operator that does not act on named parameters.
    """
    names, shapes = operator.parameter_names, operator.parameter_shapes
    kernel = isinstance(operator, NTK) and operator.symmetric
    acts = kernel or sum(s.numel() for s in shapes or ()) == operator.shape[1]
    kind = f"a {operator.name} of shape {tuple(operator.shape)}"
    v.require(acts and names is not None, "by_layer", "the operator must act on parameters", kind)
    assert names is not None
    assert shapes is not None
    places = _places(names, [shape.numel() for shape in shapes])
    if _from_rows(operator, groups, places, take):
        return
    diagonal = operator.known_diagonal() if isinstance(operator, GGN) else None
    for name, members in groups.items():
        own = [places[n] for n in members]
        block: LinearOperator
        if isinstance(operator, NTK):
            block = BlockOfKernel(operator, own)
        else:
            block = BlockOfProducts(operator, own)
        parts = [] if diagonal is None else [float(diagonal[p].double().sum()) for p in own]
        size = sum(p.stop - p.start for p in own)
        take(Block(name, size, block, sum(parts) if parts else None))


def _places(names: Sequence[str], sizes: Sequence[int]) -> dict[str, slice]:
    out, at = {}, 0
    for name, size in zip(names, sizes, strict=True):
        out[name] = slice(at, at + size)
        at += size
    return out


def _from_rows(
    operator: LinearOperator,
    groups: Groups,
    places: Mapping[str, slice],
    take: Callable[[Block], None],
) -> bool:
    """Make blocks from rows of J; False if rows are not available or cost more than products."""
    if not isinstance(operator, (NTK, GGN)):
        return False
    factor = operator.factor if isinstance(operator, GGN) else None
    if factor is not None and not isinstance(factor, OutputFactor):
        return False
    linearization = operator.linearization
    linearization.snapshot.require_unchanged()
    if linearization.streamed or linearization.n_outputs > _PASSES * len(groups):
        return False
    order, named = list(places), list(groups)
    members = [[order.index(name) for name in group] for group in groups.values()]
    sizes = [sum(places[n].stop - places[n].start for n in group) for group in groups.values()]

    def given(at: int, rows: Rows) -> None:
        take(_block(named[at], sizes[at], rows))

    one = _structured(linearization)
    if one is not None:
        one.seeds = None if factor is None else _columns(factor, one)
        if each_group(one, members, _workspace(linearization), given):
            return True
    del one
    bytes_of_all = linearization.rows * linearization.n_params * linearization.dtype.itemsize
    jacobian = None
    if bytes_of_all <= linearization.workspace // 2:
        jacobian = sample_rows.jacobian(linearization)
    if jacobian is None:
        return False
    for at, group in enumerate(groups.values()):
        parts = []
        for name in group:
            rows = jacobian[:, places[name]]
            rows = rows if factor is None else weighed(linearization, rows, factor.apply_t)
            parts.extend(pieces(rows))
        given(at, Rows(parts))
    return True


def _workspace(linearization: Linearization) -> int:
    """Bytes for the rows of a block and their intermediate results."""
    known = linearization.workspace
    if linearization.allowance.budget is not None or linearization.device.type != "cpu":
        return known
    return max(known, min(_MOST, free_bytes() // 2))


def _columns(factor: OutputFactor, one: Structured) -> Tensor:
    """S of every sample, (N, O, O)."""
    eye = torch.eye(one.outputs, dtype=one.graph.dtype, device=one.graph.device)
    return factor.apply(eye.expand(one.n, -1, -1).contiguous())


def _structured(linearization: Linearization) -> Structured | None:
    """The uses of every parameter, from one forward pass; None if they cannot be traced."""
    policy = linearization.snapshot.policy
    if policy.batch_stats is not None or policy.dropout is not None:
        return None
    try:
        found = Structured(linearization.snapshot)
    except LIMITS:
        raise
    except Exception:  # sizes that are no numbers, as of jagged tensors inside the model
        return None
    return None if found.why else found


def _block(name: str, size: int, rows: Rows) -> Block:
    """The block of some rows, as an explicit matrix if that is cheaper than products."""
    if rows.kernel is not None:
        return Block(name, size, rows.kernel, float(rows.kernel.diagonal().double().sum()))
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in rows.parts]
    trace = float(torch.stack(norms).square().sum())
    operator: LinearOperator | Tensor = RowsOperator(rows.parts)
    if size <= min(_SMALL, len(rows.parts[0])):
        whole = torch.cat(rows.parts, 1)
        operator = whole.T @ whole
    elif len(rows.parts[0]) <= _SMALL:
        operator = rows.parts[0].new_zeros(len(rows.parts[0]), len(rows.parts[0]))
        for part in rows.parts:
            operator.addmm_(part, part.T)
    return Block(name, size, operator, trace)
