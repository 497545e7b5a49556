"""Kernels, their traces and diagonals, and Jacobians, from the uses of every parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor

from catapult_ext import ops
from catapult_ext.linops.tracing.parameter_use_rules import Outer, Positions
from catapult_ext.linops.tracing.parameter_uses import Structured

Group = tuple[list[int], list[int]]  # parameters and the uses that touch them
Outers = Callable[[int, list[Tensor]], bool]
Take = Callable[[list[Tensor], int, slice], None]

_WHOLE = 96  # rows whose square product is not worth splitting
_FLOPS_PER_VALUE = 16.0  # a pass over a product in memory costs as much as these in a GEMM


def _passes(sides: list[Structured], workspace: int) -> Iterator[list[Group]] | None:
    """Groups whose gradients fit half the workspace together; None where one alone does not."""
    item = sides[0].graph.element_size()

    def bytes_of(group: Group) -> int:
        return (
            sum(s.n * s.outputs * prod(s.uses[k].out[1:]) for s in sides for k in group[1]) * item
        )

    groups = sides[0].groups()
    if any(bytes_of(group) > workspace // 2 for group in groups):
        return None

    def batches() -> Iterator[list[Group]]:
        some: list[Group] = []
        total = 0
        for group in groups:
            size = bytes_of(group)
            if some and total + size > workspace // 2:
                yield some
                some, total = [], 0
            some.append(group)
            total += size
        if some:
            yield some

    return batches()


def gradient_bytes(one: Structured) -> int:
    """Of the largest group of uses, for one sample."""
    item = one.graph.element_size()
    sizes = (sum(prod(one.uses[k].out[1:]) for k in uses) for _, uses in one.groups())
    return max(sizes, default=0) * one.outputs * item


def each_block(
    sides: list[Structured], workspace: int, take: Take, outer: Outers | None = None
) -> bool:
    """Hand blocks of Jacobian rows, one tensor (N, O, q) per side, to ``take``.

    ``outer(uses, gradients)`` may take a group of one outer product instead; it says whether it
    did.  False where the workspace does not suffice (nothing was handed out).
    """
    passes = _passes(sides, workspace)
    if passes is None:
        return False
    item = sides[0].graph.element_size()
    room = max(1, workspace // 8 // item)
    total_rows = sum(s.n * s.outputs for s in sides)
    sizes = [p.numel() for p in sides[0].leaves]
    for members, uses in sides[0].groups():
        derived = any(sides[0].is_derived(sides[0].uses[k]) for k in uses)
        if derived and total_rows * sum(sizes[i] for i in members) * item > workspace // 2:
            return False
    for some in passes:
        wanted = [k for _, uses in some for k in uses]
        gradients = [dict(zip(wanted, s.gradients(wanted), strict=True)) for s in sides]
        for members, uses in some:
            parts = [[g[k] for k in uses] for g in gradients]
            if outer is not None and len(uses) == 1 and outer(uses[0], [p[0] for p in parts]):
                continue
            if any(sides[0].is_derived(sides[0].uses[k]) for k in uses):
                found = [
                    s.leaf_rows(members, uses, p, room) for s, p in zip(sides, parts, strict=True)
                ]
                for i in found[0]:
                    take([f[i] for f in found], i, slice(0, sizes[i]))
                continue
            target = sides[0].uses[uses[0]].target
            rest = target[0].numel() if target.dim() else 1
            step = max(1, room // (total_rows * rest))
            length = len(target) if target.dim() else 1
            for at in range(0, length, step):
                lead = slice(at, min(at + step, length))
                blocks = []
                for s, p in zip(sides, parts, strict=True):
                    block = s.rows(s.uses[uses[0]], p[0], lead, room)
                    for k, g in zip(uses[1:], p[1:], strict=True):
                        block = block + s.rows(s.uses[k], g, lead, room)
                    blocks.append(block)
                take(blocks, members[0], slice(lead.start * rest, lead.stop * rest))
        del gradients
    return True


def kernel(one: Structured, two: Structured | None, outputs: str, workspace: int) -> Tensor | None:
    """J J2', (N*O, N2*O2), or its trace over outputs (N, N2); None: too large for the workspace.

    Symmetric kernels are sums of Gram matrices, of which one triangle is computed.
    """
    sides = [one] if two is None else [one, two]
    trace = outputs == "trace"
    shape = [s.n if trace else s.n * s.outputs for s in (sides[0], sides[-1])]
    theta = one.graph.new_zeros(shape, requires_grad=False)

    def take(blocks: list[Tensor], at: int, place: slice) -> None:
        left, right = (
            b.reshape(n, -1) for b, n in zip((blocks[0], blocks[-1]), shape, strict=True)
        )
        if two is None:
            _add_gram(theta, left)
        else:
            theta.addmm_(left, right.T)

    def outer(k: int, gradients: list[Tensor]) -> bool:
        uses = [s.uses[k] for s in sides]
        return _by_factors(theta, uses, gradients, trace, workspace)

    with torch.no_grad():
        if not each_block(sides, workspace, take, outer):
            return None
        if two is None:
            mirror_(theta)
    return theta


def gram(rows: Tensor) -> Tensor:
    """Inner products of all rows, exactly symmetric."""
    theta = rows.new_zeros(len(rows), len(rows))
    _add_gram(theta, rows)
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
    out = one.graph.new_zeros(one.n * one.outputs, requires_grad=False)

    def take(blocks: list[Tensor], at: int, place: slice) -> None:
        out.add_(blocks[0].square().sum(-1).view(-1))

    with torch.no_grad():
        return out if each_block([one], workspace, take) else None


def jacobian(one: Structured, workspace: int) -> Tensor | None:
    """J (N*O, P)."""
    sizes = [p.numel() for p in one.leaves]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    out = one.graph.new_zeros(one.n, one.outputs, sum(sizes), requires_grad=False)

    def take(blocks: list[Tensor], at: int, place: slice) -> None:
        out[:, :, starts[at] + place.start : starts[at] + place.stop] = blocks[0]

    with torch.no_grad():
        return out.view(-1, sum(sizes)) if each_block([one], workspace, take) else None


def _add_gram(theta: Tensor, rows: Tensor) -> None:
    """The lower triangle of theta += rows rows', and little of the upper one."""
    n = len(rows)
    if n <= _WHOLE:
        theta.addmm_(rows, rows.T)
        return
    half = n // 2
    theta[half:, :half].addmm_(rows[half:], rows[:half].T)
    _add_gram(theta[:half, :half], rows[:half])
    _add_gram(theta[half:, half:], rows[half:])


def _by_factors(
    theta: Tensor, uses: list, gradients: list[Tensor], trace: bool, workspace: int
) -> bool:
    """Adds a use's kernel from inner products of its factors, where that takes fewer flops."""
    use = uses[0]
    if not isinstance(use, Positions) or use.target.grad_fn is not None:
        return False
    if isinstance(use, Outer) and use.positions == 1:
        flat = [g.reshape(*g.shape[:2], -1) for g in gradients]
        a = [u.x[:, 0].contiguous() for u in uses]
        g = [f.contiguous() for f in flat]
        a2, g2 = (None, None) if len(uses) == 1 else (a[1:], g[1:])
        kind = "trace" if trace else "all"
        theta.add_(ops.gram(a[:1], g[:1], scale=[1], bias=[0], a2=a2, g2=g2, outputs=kind))
        return True
    n, o, s = *gradients[0].shape[:2], use.positions
    n2, s2 = gradients[-1].shape[0], uses[-1].positions
    factors = [
        g.reshape(g.shape[0], o, u.positions, -1) for g, u in zip(gradients, uses, strict=True)
    ]
    width = factors[0].shape[3]
    pairs = float(n * s * n2 * s2)
    inner = pairs * (2.0 * use.target.numel() / width + (2.0 * o if trace else 2.0 * o * o) * width)
    passes = pairs * (1 if trace else o * o) * _FLOPS_PER_VALUE
    plain = (n + n2) / 2 * o * use.flops() + float(n * n2 * o) * use.target.numel() * (
        1 if trace else o
    )
    if inner + passes >= plain:
        return False
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
    return True
