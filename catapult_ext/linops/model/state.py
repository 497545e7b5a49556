"""Copies of a user's parameters and buffers, checked, and divided by what is differentiated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.linops.model.inputs import wide

Chosen = str | Tensor | Iterable[str | Tensor] | None  # parameters, by name or themselves


class Shared:
    """Parameters in the memory of the user's module, whose bits must stay as they are.

    Args:
        tensors: by name; none where everything is copied.
        where: the public function named in errors.
    """

    def __init__(self, tensors: dict[str, Tensor], where: str) -> None:
        self._tensors, self._where = tensors, where
        self._sums = {name: _sum_of_bits(t) for name, t in tensors.items()}

    def check(self) -> None:
        """Raise RuntimeError where a parameter has changed."""
        for name, t in self._tensors.items():
            if _sum_of_bits(t) != self._sums[name]:
                raise RuntimeError(
                    f"catapult_ext.{self._where}: with copy=False the model's parameters must stay "
                    f"as they were when the operator was built, got another {name} (build the "
                    "operator again, or leave copy out)"
                )


def _sum_of_bits(value: Tensor) -> int:
    """A number that changes with any single bit, and hardly ever does not with several."""
    bits = value.detach().reshape(-1)
    if value.element_size() == 4:
        # in pairs: torch adds up int32 after a copy to int64, which is twice the parameter
        even = bits.numel() // 2 * 2 if bits.storage_offset() % 2 == 0 else 0
        pairs = int(bits[:even].view(torch.int64).sum()) if even else 0
        return pairs + int(bits[even:].view(torch.int32).sum())
    return int(bits.view(torch.int64).sum())


@dataclass(frozen=True)
class State:
    """Copies of the tensors of a module.

    Attributes:
        params: the parameters to differentiate by, leaves that require grad.
        constants: all other parameters, and buffers.
        buffers: names of the buffers.
        complex_params: names of those among ``params`` whose last dimension, of size 2, holds the
            real and imaginary parts of a complex parameter.
        originals: names and originals by ``id`` of the original.
        shared: the parameters that are not copied.
    """

    params: dict[str, Tensor]
    constants: dict[str, Tensor]
    buffers: set[str]
    complex_params: set[str]
    originals: dict[int, tuple[str, Tensor]]
    shared: Shared

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(iter(self.params.values())).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(iter(self.params.values())).device


def copied_state(model: nn.Module, params: Chosen, where: str, copy: bool = True) -> State:
    """Copies of parameters and buffers of ``model``; half precision becomes float32.

    Args:
        model: the user's module.
        params: names or patterns (``fnmatch``) of the parameters to take, names of modules, or
            parameters themselves; None takes all.
        where: the public function named in errors.
        copy: False shares parameters of full precision with the module.

    Raises:
        TypeError: parameters of another or of mixed dtype, or without values.
        ValueError: no trainable parameter, one on another device, a pattern that matches none.
    """
    own, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    trainable = [name for name, p in own.items() if p.requires_grad]
    v.require(bool(trainable), where, "model must have trainable parameters", "none")
    chosen = set(selected_names(trainable, _named(params, own, where), where))
    _check_values(own, where)
    v.constant(where, own)
    taken: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    for name, p in own.items():
        if not copy and p.dtype in v.FLOAT_DTYPES:
            held = shared[name] = p.detach()
        else:
            pairs = p.is_complex() and name in chosen
            values = torch.view_as_real(p.detach()) if pairs else p.detach()
            held = wide(values.clone())
        if name in chosen:
            taken[name] = held.detach().requires_grad_()
        else:
            constants[name] = held
    for name, b in buffers.items():
        constants[name] = wide(b.detach().clone())
    originals = {id(t): (name, t) for name, t in (*own.items(), *buffers.items())}
    numbers = {name for name in taken if own[name].is_complex()}
    state = State(taken, constants, set(buffers), numbers, originals, Shared(shared, where))
    _check_parameters(state, where)
    return state


def _named(params: Chosen, own: Mapping[str, Tensor], where: str) -> str | Sequence[str] | None:
    """``params`` with the names of parameters in the place of these."""
    if params is None or isinstance(params, str):
        return params
    if not isinstance(params, Iterable):
        return params  # refused where names are matched
    known = {id(p): name for name, p in own.items()}
    given = [params] if isinstance(params, Tensor) else list(params)
    foreign = [tuple(p.shape) for p in given if isinstance(p, Tensor) and id(p) not in known]
    v.require(
        not foreign,
        where,
        "params must be parameters of the model itself",
        f"tensors of shapes {foreign[:3]} that are not",
    )
    return [known[id(p)] if isinstance(p, Tensor) else p for p in given]


def _check_values(own: Mapping[str, Tensor], where: str) -> None:
    """Refuse parameters on the meta device, where offloading keeps none of their values."""
    empty = [name for name, p in own.items() if p.device.type == "meta"]
    if empty:
        v.fail(
            where,
            "parameters must hold their values (of a model that accelerate has offloaded, call "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True) first)",
            f"{empty[0]} on the meta device",
            TypeError,
        )


def selected_names(names: list[str], params: str | Sequence[str] | None, where: str) -> list[str]:
    """Names that match a pattern of ``params`` or lie in a module of that name; each must fit."""
    if params is None:
        return names
    if not isinstance(params, Sequence):
        v.fail(where, "params must be a name or a list of names", type(params).__name__, TypeError)
    patterns = [params] if isinstance(params, str) else list(params)

    def fits(name: str, pattern: str) -> bool:
        return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")

    for pattern in patterns:
        matches = isinstance(pattern, str) and any(fits(n, pattern) for n in names)
        v.require(
            matches,
            where,
            f"params must be names or patterns of trainable parameters ({', '.join(names[:8])}"
            f"{', ...' if len(names) > 8 else ''})",
            repr(pattern) if isinstance(pattern, str) else type(pattern).__name__,
        )
    return [n for n in names if any(fits(n, pattern) for pattern in patterns)]


def _check_parameters(state: State, where: str) -> None:
    dtype, device = state.dtype, state.device
    for name, p in state.params.items():
        if p.dtype not in v.FLOAT_DTYPES or p.dtype != dtype:
            v.fail(
                where,
                "trainable parameters, and parts of complex ones, must all be float32 (or half "
                "precision) or all float64",
                f"{name} with {p.dtype}",
                TypeError,
            )
        v.require(
            p.device == device,
            where,
            f"parameters must be on one device ({device})",
            f"{name} on {p.device}",
        )
