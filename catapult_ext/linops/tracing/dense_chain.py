"""Proof, during a model's own forward pass, that it is a chain of dense layers and activations.

A TorchFunctionMode watches every call that touches something depending on a parameter.  Only these
are taken: a linear layer on raw or number-scaled parameters, element-wise functions of the current
value, multiplication by a number, adding a bias, reshapes that change nothing.  Anything else, a
parameter used twice, or an old value used again, and the model is not a chain: silence is never
taken for proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from catapult_ext.linops.model.leaves import tensors_in

_ELEMENTWISE_NAMES = """
    abs absolute arctan atan celu celu_ cos elu elu_ erf exp gelu hardshrink hardsigmoid
    hardswish hardtanh hardtanh_ leaky_relu leaky_relu_ log1p logsigmoid mish neg relu relu6
    relu_ selu selu_ sigmoid sigmoid_ silu sin sinh softplus softshrink softsign square tanh
    tanh_ tanhshrink threshold threshold_ asinh arcsinh expm1 erf_ abs_ sin_ cos_ square_ exp_
""".split()  # noqa: SIM905
_ELEMENTWISE = {
    getattr(home, name)
    for name in _ELEMENTWISE_NAMES
    for home in (torch, F, torch.Tensor, torch._C._nn)
    if callable(getattr(home, name, None))
}
_ELEMENTWISE |= {F.logsigmoid, F.softplus}
_SCALE = {"mul": 1, "__mul__": 1, "__rmul__": 1, "multiply": 1, "div": -1, "true_divide": -1}
_SCALE |= {"__truediv__": -1, "neg": 0, "negative": 0, "__neg__": 0}
_ADD = ("add", "__add__", "__radd__")
_RESHAPE = ("flatten", "view", "reshape", "contiguous", "squeeze", "to", "float", "double")

_OTHER_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Embedding,
    nn.RNNBase,
    nn.MultiheadAttention,
)


def plausible(model: nn.Module) -> bool:
    """Whether no module or parameter tells beforehand that ``model`` is no chain."""
    known = not any(isinstance(m, _OTHER_MODULES) for m in model.modules())
    return known and all(p.dim() <= 2 for p in model.parameters())


@dataclass(frozen=True)
class Replay:
    """One element-wise call, to be made again on the value of another model."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: int | str  # of the value among the arguments

    def __call__(self, value: Tensor) -> Tensor:
        """The same call on another value, which it leaves as it is."""
        args, kwargs = list(self.args), dict(self.kwargs)
        value = value.clone() if _in_place(self.func, args, kwargs) else value
        if isinstance(self.place, int):
            args[self.place] = value
        else:
            kwargs[self.place] = value
        return self.func(*args, **kwargs)

    @classmethod
    def of(cls, func: Any, args: Any, kwargs: Any, value: Tensor | None) -> Replay | None:
        """The call as it was made on ``value``; None where it takes another tensor."""
        named = [*enumerate(args), *kwargs.items()]
        places = [at for at, a in named if a is value]
        if len(places) != 1 or len(tensors_in((args, kwargs))) != 1:
            return None
        held = tuple(None if a is value else a for a in args)
        return cls(func, held, {k: a for k, a in kwargs.items() if a is not value}, places[0])


@dataclass
class Layer:
    """z = weight_scale * a W' + bias_scale * b; names are None for constant parameters.

    Attributes:
        follows: the element-wise functions that lead from z to the next input, in order; None
            where one of them takes a tensor besides the value.
    """

    weight: Tensor
    weight_name: str | None
    weight_scale: float
    input: Tensor
    output: Tensor
    bias_name: str | None = None
    bias_scale: float = 0.0
    has_bias: bool = False
    bias: Tensor | None = None
    follows: list[Replay] | None = field(default_factory=list)


@dataclass
class _Scaled:
    """A parameter times a number."""

    tensor: Tensor
    name: str | None
    factor: float


@dataclass
class Chain:
    """Layers in order; ``output`` is the final value, which may follow a last activation."""

    layers: list[Layer] = field(default_factory=list)
    output: Tensor | None = None
    before: int = 0  # layers of constants alone, which make the inputs of the first one


class ChainTracer(TorchFunctionMode):
    """Records one forward pass; afterwards :meth:`result` is its chain, or None."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.why = ""
        self._chain = Chain()
        self._known = {id(p): _Scaled(p, name, 1.0) for name, p in params.items()}
        self._kept: list[Tensor] = []  # keeps ids from being used again
        self._used: set[str] = set()
        self._open = False  # the last layer's output has met no activation yet
        self.altered = False  # an in-place call was given a copy: without a chain, run again

    def result(self, output: Tensor) -> Chain | None:
        """The chain, if everything seen belongs to it and ``output`` is its value."""
        if not self.why and self._chain.output is not output:
            self.why = "the output is not the value of a chain of dense layers and activations"
        return None if self.why else self._chain

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.why or not torch.is_grad_enabled():  # as inside a custom autograd Function
            return func(*args, **kwargs)
        touched = [t for t in tensors_in((args, kwargs)) if t.requires_grad]
        if not touched:
            if func is F.linear and not self._chain.layers:
                self._chain.before += 1
            return func(*args, **kwargs)
        current = self._chain.output
        if func in _ELEMENTWISE and len(touched) == 1 and touched[0] is current:
            return self._activation(func, args, kwargs)
        versions = [t._version for t in touched]
        out = func(*args, **kwargs)
        if not any(t.requires_grad for t in tensors_in(out)):
            # shapes, numbers, detached values: constants to autograd as well; or x[...] = value
            if versions != [t._version for t in touched]:
                self.why = f"it writes in place by {getattr(func, '__name__', func)}"
            elif getattr(func, "__name__", "") == "register_hook":
                self.why = "it changes gradients by a hook"
            return out
        if not isinstance(out, Tensor) or not self._step(func, args, kwargs, touched, out):
            self.why = self.why or f"it uses {getattr(func, '__name__', func)}"
        return out

    def _step(self, func: Any, args: Any, kwargs: Any, touched: list[Tensor], out: Tensor) -> bool:
        name = getattr(func, "__name__", "")
        if func is F.linear:
            return self._linear(*_linear_arguments(args, kwargs), out)
        if name in _SCALE and len(touched) == 1:
            return self._scale(func, args, kwargs, touched[0], out)
        if name in _ADD and len(args) == 2 and not kwargs:
            return self._add(args[0], args[1], out)
        if len(touched) != 1 or touched[0] is not self._chain.output:
            return False
        same = out.shape == touched[0].shape
        if func is F.dropout:
            return same and not _argument(args, kwargs, 2, "training", True) and self._move(out)
        vector = out.dim() == 1 and touched[0].shape == (len(out), 1)
        kept = name in _RESHAPE and out.dtype == touched[0].dtype and (same or vector)
        return kept and self._move(out)

    def _move(self, out: Tensor) -> bool:
        """The current value under another shape or name."""
        self._chain.output = out
        if self._open:
            self._chain.layers[-1].output = out
        return True

    def _activation(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._follow(Replay.of(func, args, kwargs, self._chain.output))
        if _in_place(func, args, kwargs):  # keep the layer's own output for its slope
            self.altered = True
            args, kwargs = _replace(args, kwargs, self._chain.output)
        out = func(*args, **kwargs)
        self._chain.output, self._open = out, False
        return out

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> bool:
        if x.layout != torch.strided:
            self.why = "its inputs are sparse"
            return False
        follows = x is self._chain.output
        first = not self._chain.layers and not x.requires_grad
        if x.dim() != 2 or not (follows or first) or not out.dtype == x.dtype == weight.dtype:
            return False  # as under autocast inside the forward pass
        w = self._known.get(id(weight), None if weight.requires_grad else _Scaled(weight, None, 1))
        if w is None or not self._take(w):
            return False
        layer = Layer(w.tensor, w.name, w.factor, x, out)
        self._chain.layers.append(layer)
        self._chain.output, self._open = out, True
        return bias is None or self._bias(layer, bias)

    def _bias(self, layer: Layer, bias: Tensor) -> bool:
        fits = bias.shape == (layer.weight.shape[0],) and not layer.has_bias
        b = self._known.get(id(bias), None if bias.requires_grad else _Scaled(bias, None, 1))
        if b is None or not fits or not self._take(b):
            return False
        layer.has_bias, layer.bias_name, layer.bias_scale = True, b.name, b.factor
        layer.bias = b.tensor
        return True

    def _take(self, parameter: _Scaled) -> bool:
        if parameter.name is None:
            return True
        if parameter.name in self._used:
            self.why = f"it uses parameter {parameter.name} twice"
            return False
        self._used.add(parameter.name)
        return True

    def _scale(self, func: Any, args: Any, kwargs: Any, x: Tensor, out: Tensor) -> bool:
        power = _SCALE[func.__name__]
        others = [a for a in args if a is not x]
        if kwargs or len(args) > 2 or not all(isinstance(a, (int, float)) for a in others):
            return False
        if power == 0:
            factor = -1.0
        elif not others or (power < 0 and (args[0] is not x or others[0] == 0)):
            return False
        else:
            factor = float(others[0]) ** power
        if id(x) in self._known:
            known = self._known[id(x)]
            self._known[id(out)] = _Scaled(known.tensor, known.name, known.factor * factor)
            self._kept.append(out)
            return True
        if x is not self._chain.output:
            return False
        if self._open:
            layer = self._chain.layers[-1]
            layer.weight_scale *= factor
            layer.bias_scale *= factor
        else:
            self._follow(Replay.of(func, args, kwargs, x))
        return self._move(out)

    def _follow(self, call: Replay | None) -> None:
        """Note an element-wise call behind the last layer."""
        layer = self._chain.layers[-1]
        if call is None or layer.follows is None:
            layer.follows = None
        else:
            layer.follows.append(call)

    def _add(self, left: Any, right: Any, out: Tensor) -> bool:
        current = self._chain.output
        if left is not current:
            left, right = right, left
        good = left is current and self._open and isinstance(right, Tensor)
        if not good or out.shape != left.shape:
            return False
        return self._bias(self._chain.layers[-1], right) and self._move(out)


def _in_place(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an element-wise function writes to its argument."""
    return func.__name__.endswith("_") or any(a is True for a in (*args[1:], *kwargs.values()))


def _argument(args: Any, kwargs: Any, position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _linear_arguments(args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    names = ("input", "weight", "bias")
    return tuple(_argument(args, kwargs, i, n, None) for i, n in enumerate(names))


def _replace(args: Any, kwargs: Any, value: Tensor | None) -> tuple[Any, Any]:
    """Arguments with ``value`` copied, so that an in-place function leaves it alone."""
    assert value is not None
    copy = value.clone()
    new_args = tuple(copy if a is value else a for a in args)
    return new_args, {k: copy if a is value else a for k, a in kwargs.items()}
