"""Kernels, their traces and diagonals, and Jacobians, from the uses of every parameter."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from catapult_ext import ops
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.memory_meter import LIMITS
from catapult_ext.linops.tracing.parameter_rows import Sink, each_block, gradient_bytes
from catapult_ext.linops.tracing.parameter_use_kinds import Outer, Positions, Use
from catapult_ext.linops.tracing.parameter_uses import Structured
from catapult_ext.linops.tracing.pieces import add_product

_WHOLE = 96  # rows whose square product is not worth splitting
_NATIVE = 1024  # rows that ops.gram takes at once: it makes a tensor of its own for the result
_NARROW = 256  # columns that are joined with others before they are multiplied
_FLOPS_PER_VALUE = 16.0  # a pass over a product in memory costs as much as these in a GEMM


def kernel(one: Structured, two: Structured | None, outputs: str, workspace: int) -> Tensor | None:
    """J J2', (N*O, N2*O2), or its trace over outputs (N, N2); None: too large for the workspace.

    Symmetric kernels are sums of Gram matrices, of which one triangle is computed.
    """
    sides = [one] if two is None else [one, two]
    with torch.no_grad():
        sink = _Kernel(sides, outputs == "trace", workspace)
        if not each_block(sides, workspace, sink):
            return None
        return mirror_(sink.theta) if two is None else sink.theta


class _Kernel(Sink):
    """Adds up J J2' parameter by parameter; of a symmetric kernel the lower triangle at least."""

    keeps_rows = False

    def __init__(self, sides: list[Structured], trace: bool, workspace: int) -> None:
        self._sides, self._trace, self._workspace = sides, trace, workspace
        self._symmetric = len(sides) == 1
        self._n, self._outputs = [sides[0].n, sides[-1].n], sides[0].outputs
        shape = [n if trace else n * self._outputs for n in self._n]
        self.theta = sides[0].graph.new_zeros(shape, requires_grad=False)
        # the sum over the parameters of a pass is a second matrix of this size
        self.takes_outputs = self.theta.nbytes <= workspace // 8

    def _uses(self, use: int) -> list[Use]:
        return [s.uses[use] for s in self._sides]

    def wants_factors(self, use: int) -> bool:
        """Whether inner products of the factors take fewer flops than the rows."""
        return factors_pay(self._uses(use), self._n, self._outputs, self._trace)

    def factors(self, use: int, gradients: list[Tensor]) -> None:
        """Add the kernel of a use from inner products of its factors."""
        add_factors(self.theta, self._uses(use), gradients, self._trace, self._workspace)

    def rows(self, blocks: list[Tensor], parameter: int, place: slice) -> None:
        """Add the inner products of rows (N, O, q)."""
        left = blocks[0].reshape(len(self.theta), -1)
        if self._symmetric:
            add_gram(self.theta, left)
        else:
            add_product(self.theta, left, blocks[1].reshape(self.theta.shape[1], -1).T)

    def by_output(self, blocks: list[list[Tensor]], parameters: list[int]) -> None:
        """Add the inner products of rows (O, N, q); their sum is brought to the order (n, o)."""
        joined = [_joined(side) for side in blocks]
        n, n2 = self._n
        o = self._outputs
        if self._trace:
            joined = [[block[k] for block in side for k in range(o)] for side in joined]
            self.theta += _inner(joined)
            return
        total = _inner([[b.view(-1, b.shape[2]) for b in side] for side in joined])
        self.theta.view(n, o, n2, o).add_(total.view(o, n, o, n2).permute(1, 0, 3, 2))


def _joined(blocks: list[Tensor]) -> list[Tensor]:
    """Blocks (O, N, q), the narrow ones as one: a product of few columns is all overhead."""
    narrow = [b for b in blocks if b.shape[2] < _NARROW]
    wide = [b for b in blocks if b.shape[2] >= _NARROW]
    return wide + ([torch.cat(narrow, 2)] if narrow else [])


def _inner(sides: list[list[Tensor]]) -> Tensor:
    """Sum of the inner products of all rows over a list of blocks (rows, q), of one side or two."""
    left, right = sides[0], sides[-1]
    if left[0].device.type != "cpu":
        total = left[0].new_zeros(len(left[0]), len(right[0]))
        for a, b in zip(left, right, strict=True):
            total.addmm_(a, b.T)
        return total
    factors: list[Any] = []
    for side in sides:
        one = side[0].new_ones(len(side[0]), 1)
        factors += [[one] * len(side), [b.unsqueeze(1) for b in side]]
    a, g, a2, g2 = factors if len(sides) == 2 else (*factors, None, None)
    count = len(left)
    return ops.gram(a, g, scale=[1] * count, bias=[0] * count, a2=a2, g2=g2)


def gram(rows: Tensor) -> Tensor:
    """Inner products of all rows, exactly symmetric."""
    theta = rows.new_zeros(len(rows), len(rows))
    add_gram(theta, rows)
    return mirror_(theta)


def mirror_(theta: Tensor) -> Tensor:
    """Copies the lower triangle onto the upper one, without a second matrix."""
    n = len(theta)
    if n <= _WHOLE:
        return theta.copy_(theta.tril() + theta.tril(-1).T)
    half = n // 2
    theta[:half, half:] = theta[half:, :half].T
    mirror_(theta[:half, :half])
    mirror_(theta[half:, half:])
    return theta


def diagonal(one: Structured, workspace: int) -> Tensor | None:
    """Squared norms of the rows of J, (N*O,)."""
    with torch.no_grad():
        sink = _Diagonal(one)
        return sink.out.view(-1) if each_block([one], workspace, sink) else None


class _Diagonal(Sink):
    """Adds up squared norms, (N, O)."""

    keeps_rows = False

    def __init__(self, one: Structured) -> None:
        self.out = one.graph.new_zeros(one.n, one.outputs, requires_grad=False)

    def rows(self, blocks: list[Tensor], parameter: int, place: slice) -> None:
        """Add the squared norms of rows (N, O, q)."""
        self.out.add_(blocks[0].square().sum(-1))


def weighted_diagonal(
    one: Structured, product: Callable[[Tensor], Tensor], workspace: int
) -> Tensor | None:
    """Diagonal of J' H J, (P,), where ``product`` gives H u for u (N, O, K)."""
    with torch.no_grad():
        sink = _WeightedDiagonal(one, product)
        # a product makes a few more blocks of the size of its argument
        return sink.out if each_block([one], workspace // 4, sink) else None


class _WeightedDiagonal(Sink):
    """Adds up j' H j of every column j of J, (P,)."""

    def __init__(self, one: Structured, product: Callable[[Tensor], Tensor]) -> None:
        sizes = [p.numel() for p in one.leaves]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._product = product
        self.out = one.graph.new_zeros(sum(sizes), requires_grad=False)

    def rows(self, blocks: list[Tensor], parameter: int, place: slice) -> None:
        """Add the columns of rows (N, O, q)."""
        start = self._starts[parameter]
        found = (blocks[0] * self._product(blocks[0])).sum((0, 1))
        self.out[start + place.start : start + place.stop] += found


def jacobian(one: Structured, workspace: int) -> Tensor | None:
    """J (N*O, P)."""
    with torch.no_grad():
        sink = _Jacobian(one)
        if not each_block([one], workspace, sink):
            return None
        return sink.out.view(-1, sink.out.shape[2])


class _Jacobian(Sink):
    """Puts rows where they belong in J (N, O, P)."""

    keeps_rows = False

    def __init__(self, one: Structured) -> None:
        sizes = [p.numel() for p in one.leaves]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.out = one.graph.new_zeros(one.n, one.outputs, sum(sizes), requires_grad=False)

    def rows(self, blocks: list[Tensor], parameter: int, place: slice) -> None:
        """Copy rows (N, O, q) to their columns of J."""
        start = self._starts[parameter]
        self.out[:, :, start + place.start : start + place.stop] = blocks[0]


def add_gram(theta: Tensor, rows: Tensor) -> None:
    """The lower triangle of theta += rows rows', and little of the upper one."""
    n, q = rows.shape
    if rows.device.type == "cpu" and n <= _NATIVE and q >= _NARROW:
        theta.add_(_inner([[rows.contiguous()]]))
        return
    if n <= _WHOLE:
        theta.addmm_(rows, rows.T)
        return
    half = n // 2
    add_product(theta[half:, :half], rows[half:], rows[:half].T)
    add_gram(theta[:half, :half], rows[:half])
    add_gram(theta[half:, half:], rows[half:])


def factors_pay(uses: list[Use], n: list[int], o: int, trace: bool) -> bool:
    """Whether a use's kernel takes fewer flops from inner products of its factors."""
    use, (n1, n2) = uses[0], n
    if not isinstance(use, Positions) or use.target.grad_fn is not None:
        return False
    if isinstance(use, Outer) and use.positions == 1:
        return True
    s, s2 = use.positions, uses[-1].positions  # type: ignore[attr-defined]
    width = prod(use.out[1:]) // s
    pairs, entries = float(n1 * s * n2 * s2), use.target.numel()
    inner = pairs * (2.0 * entries / width + (2.0 * o if trace else 2.0 * o * o) * width)
    passes = pairs * (1 if trace else o * o) * _FLOPS_PER_VALUE
    plain = (n1 + n2) / 2 * o * use.flops() + float(n1 * n2 * o) * entries * (1 if trace else o)
    return inner + passes < plain


def add_factors(
    theta: Tensor, uses: list[Any], gradients: list[Tensor], trace: bool, workspace: int
) -> None:
    """Adds a use's kernel from inner products of its factors."""
    use = uses[0]
    if isinstance(use, Outer) and use.positions == 1:
        flat = [g.reshape(*g.shape[:2], -1) for g in gradients]
        a = [u.x[:, 0].contiguous() for u in uses]
        g = [f.contiguous() for f in flat]
        a2, g2 = (None, None) if len(uses) == 1 else (a[1:], g[1:])
        kind = "trace" if trace else "all"
        theta.add_(ops.gram(a[:1], g[:1], scale=[1], bias=[0], a2=a2, g2=g2, outputs=kind))
        return
    n, o, s = *gradients[0].shape[:2], use.positions
    n2, s2 = gradients[-1].shape[0], uses[-1].positions
    factors = [
        g.reshape(g.shape[0], o, u.positions, -1) for g, u in zip(gradients, uses, strict=True)
    ]
    ways = (0, 2, 1, 3) if trace else (0, 1, 2, 3)
    right = factors[-1].permute(ways).reshape(n2 * s2 if trace else n2 * o * s2, -1)
    item = theta.element_size()
    per_sample = s * n2 * s2 * (2 if trace else 2 * o * o + 1) * item
    step = max(1, workspace // 4 // per_sample)
    for at in range(0, n, step):
        mine = slice(at, min(at + step, n))
        data = uses[0].inner(uses[-1], mine)
        left = factors[0][mine].permute(ways)
        m = len(left)
        if trace:
            product = (left.reshape(m * s, -1) @ right.T).view(m, s, n2, s2)
            theta[mine] += (product * data).sum((1, 3))
        else:
            product = (left.reshape(m * o * s, -1) @ right.T).view(m, o, s, n2, o, s2)
            part = (product * data.view(m, 1, s, n2, 1, s2)).sum((2, 5))
            theta[mine.start * o : mine.stop * o] += part.reshape(m * o, n2 * o)


class UsesPart:
    """Some samples of a model by the uses of its parameters alone, without a second graph."""

    def __init__(self, found: Structured, workspace: int) -> None:
        self._found, self.workspace = found, workspace
        self.outputs = found.graph.detach()

    @classmethod
    def of(cls, part: FixedModel, workspace: int) -> UsesPart | None:
        """None where uses are not known, or samples are not independent."""
        coupled = part.policy.batch_stats is not None or part.policy.dropout is not None
        if coupled or part.coarse:
            return None
        try:
            found = Structured(part)
        except LIMITS:
            raise
        except Exception:  # the model needs all samples: a graph's edges, statistics of a batch
            return None
        return None if found.why else cls(found, workspace)

    def kernel(self, other: UsesPart | None, outputs: str) -> Tensor | None:
        """J J2' with another part from per-sample gradients; None beyond the workspace."""
        if outputs == "diagonal":
            return diagonal(self._found, self.workspace)
        theirs = None if other is None else other._found
        return kernel(self._found, theirs, outputs, self.workspace)

    def gradient_bytes(self, outputs: str) -> int:
        """Bytes, for each sample, of the gradients of the largest group of uses."""
        return gradient_bytes(self._found)
