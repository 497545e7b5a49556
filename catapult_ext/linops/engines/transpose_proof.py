"""A proof that products with J belong to the J' of plain backward passes, block by block.

A product t -> J t is differentiated by t: that gives its own transpose, which is compared with a
backward pass for every parameter, so that a branch counts by its own size and not by its share of
the whole.  Differences at the size of rounding are told from wrong ones by their additivity:
wrong derivatives are linear in the cotangent, rounding is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from catapult_ext.linops.engines.block_errors import EXACT, TERMS, differing
from catapult_ext.linops.engines.pullback import OfLast, Pullback
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.memory_meter import OverBudget

# blocks of t to J t, with graph; None where a block is zero
Product = Callable[[Sequence[Tensor | None]], Tensor | None]
# u (N*O, 1) to the blocks of J' u at some positions; None where a parameter is not used
Transposed = Callable[[Tensor, Sequence[int]], Sequence[Tensor | None]]

_TOGETHER = 128 << 20  # bytes of parameters that are proven at a time


def mismatch(
    snapshot: FixedModel,
    rows: int,
    product: Product,
    vjp: Transposed,
    apart: bool = False,
    lazy: bool = False,
) -> str:
    """Why ``product`` is not the transpose of ``vjp``; an empty text where it is.

    Cost: a product with graph, a backward pass through it, and one backward pass of the model;
    three times that where rounding has to be told from errors.

    Args:
        snapshot: the model.
        rows: N*O.
        product: J t.
        vjp: J' u.
        apart: ``product`` takes None for blocks, so that large models are proven some parameters at
            a time: memory for the blocks of ``_TOGETHER`` bytes of them, at a pass more for each.
        lazy: torch's own operations alone make the graphs, so that one pass serves all of these
            times: see :mod:`~catapult_ext.linops.engines.pullback`.
    """
    groups = _groups(snapshot) if apart else [range(len(snapshot.names))]
    try:
        lazy = lazy and len(groups) > 1
        if lazy:  # large blocks last, when what flows into the others has been let go
            groups = sorted(groups, key=lambda group: sum(snapshot.sizes[i] for i in group))
        back = _lazily if lazy else _pulled_back
        wrong = _by_transpose(snapshot, rows, back(snapshot, product), vjp, groups)
    except (torch.OutOfMemoryError, OverBudget):
        raise
    except RuntimeError:  # the product has no derivative of its own: compare it in pairs
        try:
            wrong = _by_pairs(snapshot, rows, product, vjp)
        except (torch.OutOfMemoryError, OverBudget):
            raise
        except RuntimeError as error:
            text = str(error).strip().split("\n")[0]
            return text.removeprefix(f"catapult_ext.{snapshot.where}: ")
    names = [snapshot.names[i] for i in sorted(wrong)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"wrong or missing derivatives by {', '.join(names[:3])}{more}" if names else ""


def _groups(snapshot: FixedModel) -> list[Sequence[int]]:
    """Positions of parameters that are proven together, in order."""
    groups: list[list[int]] = [[]]
    room = _TOGETHER
    for i, size in enumerate(snapshot.sizes):
        room -= size * snapshot.itemsize
        if room < 0 and groups[-1]:
            groups.append([])
            room = _TOGETHER - size * snapshot.itemsize
        groups[-1].append(i)
    return list(groups)


def _random(rows: int, seed: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 1, generator=generator, dtype=like.dtype, device="cpu").to(like)


def _by_transpose(
    snapshot: FixedModel,
    rows: int,
    back: Transposed,
    vjp: Transposed,
    groups: Sequence[Sequence[int]],
) -> list[int]:
    """Positions of the parameters whose blocks differ."""
    like = next(iter(snapshot.params.values()))

    def errors(u: Tensor, group: Sequence[int]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        right = _filled(snapshot, vjp(u, group), group)
        found = _filled(snapshot, back(u, group), group)
        return found, right

    return differing(snapshot, errors, lambda seed: _random(rows, seed, like), groups)


def _filled(
    snapshot: FixedModel, blocks: Sequence[Tensor | None], group: Sequence[int]
) -> list[Tensor]:
    """Zeros for None."""
    params = list(snapshot.params.values())
    return [
        torch.zeros_like(params[i]) if b is None else b for i, b in zip(group, blocks, strict=True)
    ]


def _pulled_back(snapshot: FixedModel, product: Product) -> Transposed:
    """The transpose of ``product``, by a product and a backward pass for each call."""
    generator = torch.Generator().manual_seed(1)
    params = list(snapshot.params.values())

    def back(u: Tensor, group: Sequence[int]) -> Sequence[Tensor | None]:
        generator.manual_seed(1)
        blocks: list[Tensor | None] = [None] * len(params)
        with torch.inference_mode(False), torch.enable_grad():
            for i in group:
                blocks[i] = _drawn(params[i].shape, params[i], generator).requires_grad_()
            given = [b for b in blocks if b is not None]
            out = product(blocks)
            if out is None or not out.requires_grad:
                return [None] * len(given)
            return torch.autograd.grad(
                out, given, u.reshape(out.shape).to(out.dtype), allow_unused=True
            )

    return back


def _lazily(snapshot: FixedModel, product: Product) -> Transposed:
    """The same by one product with graph for all calls.

    It is taken at tangents whose rows are all alike, of which one is in memory: the derivative of a
    linear function is the same everywhere.
    """
    generator = torch.Generator().manual_seed(1)
    given = []
    with torch.inference_mode(False), torch.enable_grad():
        for p in snapshot.params.values():
            row = _drawn(p.shape[-1:], p, generator)
            given.append(row.expand(p.shape).detach().requires_grad_())
        out = product(given)
        if out is None or not out.requires_grad:
            return lambda u, group: [None] * len(group)
        pulled = OfLast(Pullback(out, given))
    return lambda u, group: pulled(u.to(out.dtype), group)


def _drawn(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device="cpu").to(like.device)


def _by_pairs(snapshot: FixedModel, rows: int, product: Product, vjp: Transposed) -> list[int]:
    """The same by <u, J t> = <J' u, t> for t in one block after another: a product each."""
    u = _random(rows, 0, next(iter(snapshot.params.values())))
    everything = range(len(snapshot.names))
    right = _filled(snapshot, vjp(u, everything), everything)
    generator = torch.Generator().manual_seed(1)
    zeros = [torch.zeros_like(r) for r in right]
    largest = max(r.double().norm().item() for r in right)
    wrong = []
    for i, r in enumerate(right):
        t = torch.randn(r.shape, generator=generator, dtype=torch.float64, device="cpu").to(r)
        with torch.no_grad():
            out = product([*zeros[:i], t, *zeros[i + 1 :]])
        made = zeros[i].new_zeros(rows) if out is None else out.detach().reshape(-1)
        gap = (u[:, 0].double() @ made.double() - (r.double() * t.double()).sum()).abs().item()
        size = u.double().norm() * made.double().norm() + r.double().norm() * t.double().norm()
        floor = TERMS * snapshot.observed.eps * largest * t.double().norm().item()
        if not gap <= EXACT * torch.finfo(snapshot.dtype).eps * size.item() + floor:
            wrong.append(i)
    return wrong
