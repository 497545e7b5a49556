"""Calls that are one function to torch, run as the operations that they are made of.

Rules for uses of parameters then see attention as its linear layers, and LSTM, GRU and RNN as one
linear layer on the inputs of all steps and one on the states of all steps.  Inside, the samples
are the second dimension.  A result that is computed another way than torch computes it is compared
with torch's own by :class:`~catapult_ext.linops.tracing.parameter_uses.Structured`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from catapult_ext.linops.tracing.parameter_use_kinds import Broadcast, Outer, Use

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
State = tuple[Tensor, Tensor | None]  # h (N, H) and, of an LSTM, c


class Tracer(Protocol):
    """Records the uses in the calls that run inside it."""

    n: int  # samples

    def watching(self) -> AbstractContextManager[Any]:
        """Record the calls inside, which have their samples along the second dimension."""

    def mark(self, value: Any) -> None:
        """Take tensors for data."""

    def is_parameter(self, t: Tensor) -> bool:
        """Whether a tensor is a parameter or made of parameters alone."""

    def take(self, found: Sequence[Use | None]) -> None:
        """Record uses."""


@dataclass
class Opened:
    """The result of a call, and whether torch computes it by other operations."""

    out: Any
    replaced: bool


def opened(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Opened | None:
    """The result of a call whose parts ``tracer`` has seen; None for other calls."""
    name = getattr(func, "__name__", "")
    if name == "multi_head_attention_forward" and isinstance(func, FunctionType):
        query = kwargs.get("query", args[0] if args else None)
        if not isinstance(query, Tensor) or query.dim() != 3 or query.shape[1] != tracer.n:
            return None
        with tracer.watching():
            return Opened(_own_body(func)(*args, **kwargs), replaced=False)
    if name in _GATES and len(args) == 9 and not kwargs:
        out = _recurrent(tracer, name, *args)
        return None if out is None else Opened(out, replaced=True)
    return None


def _own_body(func: FunctionType) -> Callable[..., Any]:
    """A function without its first step, which hands the call to the mode that watches it."""
    known = {**func.__globals__, "has_torch_function": lambda args: False}
    body = FunctionType(func.__code__, known, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def _recurrent(
    tracer: Tracer,
    name: str,
    x: Tensor,
    hx: Any,
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    both_ways: bool,
    samples_first: bool,
) -> tuple[Tensor, ...] | None:
    """Result of torch.lstm, torch.gru or torch.rnn_*; None if the call cannot be opened."""
    states = list(hx) if name == "lstm" else [hx]
    made = [s for s in (x, *states) if tracer.is_parameter(s)]
    ways, each = 1 + both_ways, 4 if biases else 2
    x = x.transpose(0, 1) if samples_first else x
    batched = x.dim() == 3 and x.shape[1] == tracer.n
    if made or not batched or (dropout and training) or len(weights) != layers * ways * each:
        return None
    given = iter([tuple(weights[i : i + each]) for i in range(0, len(weights), each)])
    starts = iter(zip(*(s.unbind(0) for s in states), strict=True))
    ends: list[State] = []
    for _ in range(layers):
        sides = []
        for backwards in range(ways):
            h, *c = next(starts)
            out, end = _layer(tracer, name, x, (h, c[0] if c else None), next(given), backwards)
            sides.append(out)
            ends.append(end)
        x = torch.cat(sides, 2) if both_ways else sides[0]
    last = [torch.stack([e[0] for e in ends])]
    if name == "lstm":
        last.append(torch.stack([e[1] for e in ends if e[1] is not None]))
    return (x.transpose(0, 1) if samples_first else x, *last)


def _layer(
    tracer: Tracer, name: str, x: Tensor, state: State, weights: tuple[Tensor, ...], backwards: int
) -> tuple[Tensor, State]:
    """States (S, N, H) of one layer in one direction, and the last one.

    Gradients by what the weights of the states give are those by a tensor of zeros added to it.
    """
    w_x, w_h, *b = weights
    b_x, b_h = b or (None, None)
    tracer.mark(x)
    with tracer.watching():
        from_x = F.linear(x, w_x, b_x)
    zeros = torch.zeros_like(from_x, requires_grad=True)
    steps = list(zip(from_x.unbind(0), zeros.unbind(0), strict=True))
    before: list[Tensor] = []
    outs: list[Tensor] = []
    for gates, zero in reversed(steps) if backwards else steps:
        before.append(state[0].detach())
        state = _CELLS[name](gates, F.linear(state[0], w_h, b_h) + zero, state)
        outs.append(state[0])
    if backwards:
        before.reverse()
        outs.reverse()
    tracer.take(list(_of_states(tracer, zeros, w_h, b_h, torch.stack(before, 1))))
    return torch.stack(outs), state


def _of_states(
    tracer: Tracer, zeros: Tensor, w: Tensor, b: Tensor | None, before: Tensor
) -> Iterator[Use]:
    """Uses of the weights and the bias that the states (N, S, H) meet at all steps."""
    edge = torch.autograd.graph.get_gradient_edge(zeros)
    s, n, gates = zeros.shape
    found: list[Use] = []
    if tracer.is_parameter(w):
        found.append(Outer(w, edge, (n, s, gates), before))
    if b is not None and tracer.is_parameter(b):
        found.append(Broadcast(b, edge, (n, s, gates), (1, 1, gates)))
    for use in found:
        use.second = True
        yield use


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, 1)
    assert state[1] is not None
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, 1), h.chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return n + z * (state[0] - n), None


def _rnn(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, State], State]:
    return lambda x, h, state: (activation(x + h), None)


_CELLS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn(torch.tanh),
    "rnn_relu": _rnn(torch.relu),
}
