"""Argument checks of every layer: one clear error naming function, requirement and value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOAT_DTYPES = (torch.float32, torch.float64)


class NotFinite(ValueError):
    """NaN or infinity where numbers are needed, as in training that diverges."""


def fail(
    where: str, requirement: str, value: object, kind: type[Exception] = ValueError
) -> NoReturn:
    """Raise ``kind`` with the message ``catapult_ext.<where>: <requirement>, got <value>``."""
    raise kind(f"catapult_ext.{where}: {requirement}, got {value}")


def nearest(value: object, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` with the name most like ``value``; empty where none is."""
    close = difflib.get_close_matches(str(value), list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def require(ok: bool, where: str, requirement: str, value: object) -> None:
    """Raise ValueError unless ``ok``."""
    if not ok:
        fail(where, requirement, value)


def finite(ok: bool, where: str, name: str, value: object = "NaN or inf") -> None:
    """Raise :class:`NotFinite` unless ``ok``."""
    if not ok:
        fail(where, f"{name} must be finite", value, NotFinite)


def is_number(value: object) -> bool:
    """A real Python or NumPy number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def integers(where: str, *, optional: Any = False, **values: object) -> None:
    """Every value must be an int that 64 bits hold, no bool; None passes where ``optional``.

    Raises:
        TypeError: another type.
        ValueError: an int out of range.
    """
    for name, value in values.items():
        if optional and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, Integral)):
            fail(where, f"{name} must be an int", type(value).__name__, TypeError)
        require(-(2**63) <= int(value) < 2**63, where, f"{name} must fit 64 bits", value)


def numbers(where: str, *, optional: Any = False, **values: object) -> None:
    """Every value must be a real number (Python's or NumPy's, no bool); see :func:`integers`."""
    for name, value in values.items():
        scalar = isinstance(value, Tensor) and value.ndim == 0 and value.device.type != "meta"
        if not (optional and value is None) and not is_number(value) and not scalar:
            fail(where, f"{name} must be a number", _shown(value), TypeError)
        if isinstance(value, Tensor):
            constant(where, {name: value})
        huge = isinstance(value, int) and not -(2**63) <= value < 2**63
        require(not huge, where, f"{name} must fit 64 bits", value)


def listed(where: str, **values: object) -> None:
    """Every value must be a sequence (or a tensor or array with rows), no text."""
    for name, value in values.items():
        _rows(where, name, value)


def _rows(where: str, name: str, value: object) -> Sequence[Any] | Tensor | np.ndarray:
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0:
        return value
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        fail(where, f"{name} must be a list", type(value).__name__, TypeError)
    return value


def number_lists(where: str, **values: object) -> None:
    """Every value must be a sequence of real numbers."""
    for name, value in values.items():
        for i, item in enumerate(_rows(where, name, value)):
            if type(item) is float:  # nearly all are, and this is called for every product
                continue
            numbers(where, **{f"{name}[{i}]": item})


def module(where: str, model: object) -> None:
    """Must be a torch.nn.Module."""
    if not isinstance(model, torch.nn.Module):
        fail(where, "model must be a torch.nn.Module", type(model).__name__, TypeError)


def array(where: str, name: str, value: object, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.as_tensor`` of a number, sequence, array or dense tensor, with the one error."""
    try:
        if isinstance(value, Tensor) and value.is_complex() and dtype is not None:
            raise TypeError
        if isinstance(value, Tensor):
            found = value if dtype is None else value.to(dtype)
        else:  # on the CPU, whatever device is torch's default
            found = torch.as_tensor(value, dtype=dtype, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        fail(where, f"{name} must be numbers", _shown(value), TypeError)
    dense(where, name, found)
    constant(where, {name: found})
    return found


def device(where: str, value: object) -> torch.device:
    """A device that this torch knows and that is there.

    Raises:
        TypeError, ValueError: no device, or a GPU that this torch cannot use.
    """
    try:
        found = torch.device(value)  # type: ignore[call-overload]
    except (TypeError, RuntimeError):
        fail(where, "device must be a torch device such as 'cpu' or 'cuda'", repr(value), TypeError)
    missing = found.type == "cuda" and not torch.cuda.is_available()
    needs = "device must be there (this torch finds no GPU that it can use: see torch.cuda)"
    require(not missing, where, needs, str(found))
    return found


def one_device(where: str, tensors: Mapping[str, Tensor]) -> None:
    """All tensors but numbers (0-dim, on the CPU) must be on one device."""
    own = {name: t for name, t in tensors.items() if t.dim() or t.device.type != "cpu"}
    first = next(iter(own), "")
    for name, value in own.items():
        text = f"{name} must be on the device of {first} ({own[first].device})"
        require(value.device == own[first].device, where, text, value.device)


def dense(where: str, name: str, value: Tensor) -> None:
    """A strided tensor with memory: not sparse, not nested, not on the meta device."""
    if value.is_nested:
        needs = f"{name} must be a dense tensor (pad it, and give the lengths or a mask beside)"
        fail(where, needs, "a nested tensor", TypeError)
    if value.layout != torch.strided:
        fail(where, f"{name} must be a dense tensor", value.layout, TypeError)
    require(value.device.type != "meta", where, f"{name} must hold data", "a meta tensor")


def _shown(value: object) -> str:
    """The value where it is short, its type otherwise."""
    plain = isinstance(value, (str, float, bytes)) and len(repr(value)) < 40
    return repr(value) if plain else type(value).__name__


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
    if value.layout != torch.strided:
        fail(where, f"{name} must be a dense tensor", value.layout, TypeError)
    if value.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        fail(where, f"{name} must have dtype {names}", value.dtype, TypeError)
    fits = value.dim() == len(shape)
    for want, have in zip(shape, value.shape, strict=False):
        fits = fits and (want == have or not isinstance(want, int))
    if not fits:
        text = "(" + ", ".join(str(s) for s in shape) + ")"
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
    """Refuse inputs that require a derivative, because ops are not differentiable.

    ``requires_grad`` is an error under grad mode only; forward mode and ``torch.func`` always are.
    """
    if torch.is_grad_enabled():
        for name, value in tensors.items():
            if value.requires_grad:
                fail(
                    where,
                    f"is not differentiable: pass {name}.detach() or call it under torch.no_grad()",
                    f"{name} with requires_grad=True",
                )
    constant(where, tensors)


def written(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Tensors that an op writes in place: their memory must hold what they say."""
    if torch.compiler.is_compiling():  # is_neg cannot be traced
        return
    for name, value in tensors.items():
        require(
            not value.is_neg(),
            where,
            f"{name} is written in place and must not be a lazy negation (pass "
            f"{name}.resolve_neg())",
            "a tensor with the negative bit",
        )


def constant(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that forward mode or ``torch.func`` differentiates: the result would be 0.

    A plain ``requires_grad`` passes: the result shows by itself that it has no graph.
    """
    if torch.compiler.is_compiling():  # the checks below cannot be traced
        return
    functorch = torch._C._functorch
    for name, value in tensors.items():
        layer = value
        while functorch.is_functorch_wrapped_tensor(layer):
            if functorch.is_gradtrackingtensor(layer) and layer.requires_grad:
                _fail_derivative(where, name, "torch.func.grad")
            batched = functorch.is_batchedtensor(layer)
            if not batched and _has_tangent(layer):
                _fail_derivative(where, name, "torch.func.jvp")
            layer = functorch.get_unwrapped(layer)
        if _has_tangent(layer):
            _fail_derivative(where, name, "a forward-mode tangent")


def _has_tangent(value: Tensor) -> bool:
    if forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return False
    return forward_ad.unpack_dual(value).tangent is not None


def _fail_derivative(where: str, name: str, by: str) -> None:
    fail(where, f"is not differentiable: pass {name}.detach()", f"{name} under {by}")
