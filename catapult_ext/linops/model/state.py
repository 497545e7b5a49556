"""Copies of a user's parameters and buffers, checked, and divided by what is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext.linops.model.inputs import wide


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
    """

    params: dict[str, Tensor]
    constants: dict[str, Tensor]
    buffers: set[str]
    complex_params: set[str]
    originals: dict[int, tuple[str, Tensor]]

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(iter(self.params.values())).dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(iter(self.params.values())).device


def copied_state(model: nn.Module, params: str | Sequence[str] | None, where: str) -> State:
    """Copies of parameters and buffers of ``model``; half precision becomes float32.

    Args:
        model: the user's module.
        params: names or patterns (``fnmatch``) of the parameters to take; None takes all.
        where: the public function named in errors.

    Raises:
        TypeError: parameters of another or of mixed dtype.
        ValueError: no trainable parameter, one on another device, a pattern that matches none.
    """
    own, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    trainable = [name for name, p in own.items() if p.requires_grad]
    v.require(bool(trainable), where, "model must have trainable parameters", "none")
    chosen = set(selected_names(trainable, params, where))
    v.constant(where, own)
    taken: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    for name, p in own.items():
        if name in chosen:
            values = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
            taken[name] = wide(values.clone()).requires_grad_()
        else:
            constants[name] = wide(p.detach().clone())
    for name, b in buffers.items():
        constants[name] = wide(b.detach().clone())
    originals = {id(t): (name, t) for name, t in (*own.items(), *buffers.items())}
    numbers = {name for name in taken if own[name].is_complex()}
    state = State(taken, constants, set(buffers), numbers, originals)
    _check_parameters(state, where)
    return state


def selected_names(names: list[str], params: str | Sequence[str] | None, where: str) -> list[str]:
    """Names that match a pattern of ``params``; every pattern must match one."""
    if params is None:
        return names
    if not isinstance(params, Sequence):
        v.fail(where, "params must be a name or a list of names", type(params).__name__, TypeError)
    patterns = [params] if isinstance(params, str) else list(params)
    for pattern in patterns:
        matches = isinstance(pattern, str) and any(fnmatchcase(n, pattern) for n in names)
        v.require(
            matches,
            where,
            f"params must be names or patterns of trainable parameters ({', '.join(names[:8])}"
            f"{', ...' if len(names) > 8 else ''})",
            repr(pattern),
        )
    return [n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns)]


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
