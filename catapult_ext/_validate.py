"""Argument checks of every layer: one clear error naming function, requirement and value."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64)


def fail(where: str, requirement: str, value: object, kind: type[Exception] = ValueError) -> None:
    """Raise ``kind`` with the message ``catapult_ext.<where>: <requirement>, got <value>``."""
    raise kind(f"catapult_ext.{where}: {requirement}, got {value}")


def require(ok: bool, where: str, requirement: str, value: object) -> None:
    """Raise ValueError unless ``ok``."""
    if not ok:
        fail(where, requirement, value)


def is_number(value: object) -> bool:
    """A real Python or NumPy number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def tensor(
    value: object,
    where: str,
    name: str,
    shape: Sequence[int | str | None],
    dtypes: Sequence[torch.dtype] = FLOAT_DTYPES,
) -> Tensor:
    """Check type, dtype and shape of one tensor and return it.

    ``shape`` lists one entry per dimension: an int is an exact size, a letter only documents it.
    """
    if not isinstance(value, Tensor):
        fail(where, f"{name} must be a torch.Tensor", type(value).__name__, TypeError)
    assert isinstance(value, Tensor)
    if value.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        fail(where, f"{name} must have dtype {names}", value.dtype, TypeError)
    text = "(" + ", ".join(str(s) for s in shape) + ")"
    sizes_agree = all(
        not isinstance(want, int) or want == have
        for want, have in zip(shape, value.shape, strict=False)
    )
    if value.dim() != len(shape) or not sizes_agree:
        fail(where, f"{name} must have shape {text}", tuple(value.shape))
    return value


def same_kind(where: str, tensors: dict[str, Tensor]) -> None:
    """All tensors must share dtype and device."""
    names = list(tensors)
    first = tensors[names[0]]
    for name in names[1:]:
        other = tensors[name]
        if other.dtype != first.dtype:
            fail(
                where,
                f"{name} must have the dtype of {names[0]} ({first.dtype})",
                other.dtype,
                TypeError,
            )
        if other.device != first.device:
            fail(
                where, f"{name} must be on the device of {names[0]} ({first.device})", other.device
            )


def no_grad_needed(where: str, tensors: dict[str, Tensor]) -> None:
    """Ops are not differentiable: an input that requires grad under grad mode is an error."""
    if not torch.is_grad_enabled():
        return
    for name, value in tensors.items():
        if value.requires_grad:
            fail(
                where,
                f"is not differentiable: pass {name}.detach() or call it under torch.no_grad()",
                f"{name} with requires_grad=True",
            )
