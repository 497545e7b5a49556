"""The largest stable c = eta lambda_0 by activation, where the protocol of the table holds.

The protocol: a chain of dense layers with one activation between them, each layer's gain near
sigma_w^2 = 2 (NTK parameterisation, or He initialisation), a squared loss, plain gradient descent.
The forward pass shows what a model is: the operations that it calls, not the modules it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from catapult_ext import _validate as v

# Ranges of c for one hidden layer and for more; docs/curvature.md counts how often they held.
C_ACT = {
    "linear": ((3.5, 6.0), (3.8, 9.0)),
    "ReLU": ((4.2, 13.0), (7.5, 26.0)),
    "LeakyReLU": ((4.2, 12.0), (5.2, 14.5)),
    "Tanh": ((3.5, 7.5), (4.2, 10.5)),
    "Erf": ((3.5, 7.5), (4.2, 10.5)),
    "GELU": ((6.5, 20.0), (8.0, 28.0)),
    "SiLU": ((6.0, 20.0), (7.5, 28.0)),
    "Abs": ((3.0, 5.5), (3.4, 10.0)),
}
_ROWS = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "tanh": "Tanh",
    "erf": "Erf",
    "gelu": "GELU",
    "silu": "SiLU",
    "abs": "Abs",
    "absolute": "Abs",
}
_TABLE_SLOPE = 0.5  # of the leaky ReLU
_GAIN = (1.0, 4.0)  # sigma_w^2 = 2 within a factor 2
_LAYERS = ("linear", "conv1d", "conv2d", "conv3d")
_SILENT = (
    *("mul", "__mul__", "__rmul__", "div", "__truediv__", "flatten", "view", "reshape"),
    *("dropout", "squeeze", "unsqueeze", "contiguous", "to", "float", "double", "clone"),
)
_SUMS = ("add", "__add__", "__radd__")
IN_PARAMETERS = "a model linear in its parameters"


class _Chain(TorchFunctionMode):
    """Records the operations on what depends on parameters, and the signal's mean square."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.calls: list[str] = []  # "layer", an activation's row, or the name of anything else
        self._signal = _square(x)  # behind the last activation
        self.gains: list[float] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        depends = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and _depends(a)]
        name = getattr(func, "__name__", "").removesuffix("_")
        before = _square(depends[0]) if depends and name in _ROWS else 0.0
        slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
        out = func(*args, **kwargs)
        if not depends or not isinstance(out, Tensor) or not _depends(out):
            return out
        if name in _LAYERS:
            self.calls.append("layer")
        elif name in _ROWS and not (name == "leaky_relu" and slope != _TABLE_SLOPE):
            self.calls.append(_ROWS[name])
            self._end(before)
            self._signal = _square(out)
        elif name not in _SILENT and not (name in _SUMS and _adds_bias(args)):
            self.calls.append(name)
        return out

    def _end(self, square: float) -> None:
        """A layer's pre-activations, or the outputs, have this mean square."""
        self.gains.append(square / self._signal if self._signal > 0 else 0.0)

    def row(self, output: Tensor) -> tuple[str, tuple[float, float]] | None:
        """The table's, or None where its protocol does not hold."""
        self._end(_square(output))
        layers, between = self.calls[::2], self.calls[1::2]
        if self.calls == ["layer"]:
            return IN_PARAMETERS, (2.0, 2.0)
        if set(self.calls) == {"layer"}:
            name, hidden = "linear", len(self.calls) - 1
            per_layer = self.gains[0] ** (1 / len(self.calls))
            near = _GAIN[0] <= per_layer <= _GAIN[1]
        else:
            one = set(layers) == {"layer"} and len(set(between)) == 1
            if not one or between[0] not in C_ACT or len(self.calls) % 2 == 0:
                return None
            name, hidden = between[0], len(between)
            near = all(_GAIN[0] <= gain <= _GAIN[1] for gain in self.gains)
        depth = "two or more hidden layers" if hidden > 1 else "one hidden layer"
        return (f"{name}, {depth}", C_ACT[name][hidden > 1]) if near else None


def _depends(value: Tensor) -> bool:
    return value.requires_grad


def _square(value: Tensor) -> float:
    with torch.no_grad(), torch._C.DisableTorchFunction():
        value = value.detach()
    value = value if value.layout == torch.strided else value.to_dense()
    return float(value.abs().double().square().mean())


def _adds_bias(args: tuple[Any, ...]) -> bool:
    """Whether a sum adds a row of parameters, not a second branch."""
    shapes = [a.shape for a in args if isinstance(a, Tensor)]
    return len(shapes) < 2 or min(len(s) for s in shapes) < max(len(s) for s in shapes)


def activation_row(
    model: nn.Module, x: Any, forward: Callable[[nn.Module], Tensor]
) -> tuple[str, tuple[float, float]] | None:
    """A model's row of the table: a name for people, and the range of c; None without one.

    Args:
        model: read in one forward pass.
        x: its inputs, (N, D).
        forward: what maps the model to its outputs.

    Returns:
        Also, for a model whose only operation on parameters is one layer, the name of that and
        (2, 2): training is its own linearisation.
    """
    v.module("learning_rate_window", model)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    with torch.enable_grad(), _Chain(x) as chain:
        output = forward(model)
    dense = all(p.dim() <= 2 for p in model.parameters())
    found = chain.row(output)
    return found if found is not None and (dense or found[0] == IN_PARAMETERS) else None
