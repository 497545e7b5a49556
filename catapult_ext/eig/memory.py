"""How many vectors a solve keeps: as many as help, within the memory that the operator leaves.

An operator with a memory budget says by ``solver_room(columns)`` how many bytes its products of so
many columns leave.  A solve that fits no basis into them is refused before its first product.
"""

from __future__ import annotations

import torch

from catapult_ext import _validate as v
from catapult_ext.eig.operand import Operand

_BASIS_BYTES = 1 << 30  # V and A V together, where no budget is given
_BASIS_ROWS = 60
_FIXED = 32 << 20  # pieces of the basis in float64, and fragments of freed blocks
_SMALL = 16 << 20  # a solve that takes no more is part of what any process has


def basis_rows(a: Operand, k: int, width: int, guards: int, where: str) -> tuple[int, int, bool]:
    """Rows of the basis of a solve for k pairs with blocks of ``width``, columns, and what is kept.

    Columns go through the operator one at a time where that leaves room for the basis V.  Where V
    and A V do not fit, A V is not kept: a few products more, for half the memory.

    Returns:
        Rows of the basis, columns multiplied at once, and whether A V is kept.

    Raises:
        ValueError: the room that the operator leaves holds no basis; the message says how many
            bytes are needed, and the ways out.
    """
    least = 2 * k + 3 * width + 2
    row = a.n * torch.finfo(a.dtype).bits // 8
    keep = 2 * least * row <= _BASIS_BYTES
    usual = max(least, min(max(_BASIS_ROWS, 6 * width), _BASIS_BYTES // (2 * row)))
    usual = min(a.n + width, usual)
    besides = _besides(k, width, guards)
    if a.room is None or (2 * usual + besides) * row <= _SMALL:
        return usual, width, keep
    smallest, room = min(a.n + width, least), 0
    for keeps, at_once in ((True, width), (True, 1), (False, 1)):
        found = a.room(at_once)
        if found is None:
            return usual, width, keep
        room = found
        fitting = ((room - _FIXED) // row - besides) // (1 + keeps)
        if fitting >= smallest:
            return min(usual, fitting), at_once, keeps
    need = (smallest + besides) * row + _FIXED
    ways = [f"a budget of {_shown(need + a.budget - room)}"]
    if k > 1:
        one = (min(a.n + 1, 7) + _besides(1, 1, 0)) * row + _FIXED
        ways.append(f"k = 1 (which needs {_shown(one)} there)")
    ways.append("samples_at_once=")
    ways.append("GGN for the Hessian, solved in the space of the outputs if smaller")
    v.fail(
        where,
        f"memory_budget must leave {_shown(need)} for vectors besides the operator's own products "
        f"(k = {k} pairs of n = {a.n}; ways out: {'; '.join(ways)})",
        _shown(max(room, 0)),
    )


def _besides(k: int, width: int, guards: int) -> int:
    """Rows besides V and A V: one of the fused step, and the larger of two phases.

    A block step holds the next block, its remainder, orthonormal rows and four temporary ones; the
    end holds the pairs found, in two copies, and guards in float64 with their products.
    """
    return 1 + max(4 * width + 4, 3 * k + 8 * guards)


def _shown(count: float) -> str:
    """Bytes for people, rounded up, in a form that ``memory_budget`` takes."""
    unit, name = (1 << 30, "GiB") if count >= 1 << 30 else (1 << 20, "MiB")
    digits = 100 if unit == 1 << 30 else 1
    return f"{-(-int(count * digits) // unit) / digits:g} {name}"
