"""The operator of a quantity by its name: ggn, hessian or ntk."""

from __future__ import annotations

from typing import Any

from torch import nn

from catapult_ext import _validate as v
from catapult_ext.linops import GGN, NTK, Hessian, LinearOperator

QUANTITIES = ("ggn", "hessian", "ntk")


def check_quantity(where: str, quantity: object) -> None:
    """Raise ValueError unless it is one of ``QUANTITIES``."""
    known = isinstance(quantity, str) and quantity in QUANTITIES
    v.require(known, where, f"quantity must be one of {', '.join(QUANTITIES)}", repr(quantity))


def operator_of(
    model: nn.Module, loss: object, data: Any, quantity: str, options: dict[str, Any]
) -> LinearOperator:
    """The operator; a kernel takes the inputs among ``data``.

    Raises:
        TypeError, ValueError: what the operator raises.
    """
    if quantity == "ntk":
        x = data[0] if isinstance(data, (tuple, list)) and len(data) == 2 else data
        return NTK(model, x, **options)
    kind = GGN if quantity == "ggn" else Hessian
    return kind(model, loss, data, **options)
