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

from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.memory_meter import OverBudget

Product = Callable[[Sequence[Tensor]], Tensor | None]  # blocks of t to J t, with graph
Transposed = Callable[[Tensor], Tensor]  # u (N*O, 1) to J' u (P, 1)

_EXACT = 1e2  # rounding units by which two ways to one block may differ
_TERMS = 4.0  # rounding units of the largest block that any block may be off by


def mismatch(snapshot: FixedModel, rows: int, product: Product, vjp: Transposed) -> str:
    """Why ``product`` is not the transpose of ``vjp``; an empty text where it is.

    Cost: a product with graph, a backward pass through it, and one backward pass of the model;
    three times that where rounding has to be told from errors.
    """
    try:
        wrong = _by_transpose(snapshot, rows, product, vjp)
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
    names = [snapshot.names[i] for i in wrong]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"wrong or missing derivatives by {', '.join(names[:3])}{more}" if names else ""


def _random(count: int, rows: int, like: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (rows, 1)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(like)
        for _ in range(count)
    ]


def _by_transpose(snapshot: FixedModel, rows: int, product: Product, vjp: Transposed) -> list[int]:
    """Positions of the parameters whose blocks differ."""
    first, second = _random(2, rows, next(iter(snapshot.params.values())))

    def errors(u: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        right = snapshot.split(vjp(u)[:, 0])
        found = _pulled_back(snapshot, product, u)
        return [f - r for f, r in zip(found, right, strict=True)], right

    return differing(snapshot, errors, first, second)


def differing(
    snapshot: FixedModel,
    errors: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]],
    first: Tensor,
    second: Tensor,
) -> list[int]:
    """Positions of the parameters whose blocks differ by more than rounding.

    Args:
        snapshot: the frozen model.
        errors: differences of two products with a vector, and the right ones, in blocks.
        first: a random vector.
        second: another one, used where rounding has to be told from errors.
    """
    one, right = errors(first)
    sizes = [r.double().norm().item() for r in right]
    exact = _EXACT * torch.finfo(snapshot.dtype).eps
    doubtful = [i for i, e in enumerate(one) if not e.double().norm().item() <= exact * sizes[i]]
    # what a stored value was rounded by counts in both ways, but not alike
    floor = _TERMS * snapshot.observed.eps * max(sizes)
    doubtful = [i for i in doubtful if not one[i].double().norm().item() <= floor]
    if not doubtful:
        return []
    two, _ = errors(second)
    both, _ = errors(first + second)
    return [i for i in doubtful if not _is_rounding(one[i], two[i], both[i])]


def _is_rounding(one: Tensor, two: Tensor, both: Tensor) -> bool:
    """Whether differences at u, v and u + v are not additive, as those of wrong products are."""
    largest = max(e.double().norm().item() for e in (one, two, both))
    defect = (both.double() - one.double() - two.double()).norm().item()
    return bool(4 * defect >= largest)


def _pulled_back(snapshot: FixedModel, product: Product, u: Tensor) -> list[Tensor]:
    """The transpose of ``product`` times u, in blocks."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode(False), torch.enable_grad():
        t = [
            torch.randn(p.shape, generator=generator, dtype=torch.float64, device="cpu")
            .to(p)
            .requires_grad_()
            for p in snapshot.params.values()
        ]
        out = product(t)
        if out is None or not out.requires_grad:
            return [torch.zeros_like(p) for p in t]
        found = torch.autograd.grad(out, t, u.reshape(out.shape).to(out.dtype), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(t, found, strict=True)]


def _by_pairs(snapshot: FixedModel, rows: int, product: Product, vjp: Transposed) -> list[int]:
    """The same by <u, J t> = <J' u, t> for t in one block after another: a product each."""
    (u,) = _random(1, rows, next(iter(snapshot.params.values())))
    right = snapshot.split(vjp(u)[:, 0])
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
        floor = _TERMS * snapshot.observed.eps * largest * t.double().norm().item()
        if not gap <= _EXACT * torch.finfo(snapshot.dtype).eps * size.item() + floor:
            wrong.append(i)
    return wrong
