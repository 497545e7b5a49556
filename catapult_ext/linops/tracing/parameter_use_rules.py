"""Rules that read the uses of parameters off the calls of a forward pass, by the calls' names."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

from catapult_ext.linops.tracing.parameter_use_kinds import (
    Broadcast,
    Convolution,
    Lookup,
    Outer,
    Use,
    by_sample,
)


class ParameterCall:
    """One call that mixes parameters with data of N samples."""

    def __init__(
        self,
        args: Any,
        kwargs: Any,
        edge: GradientEdge,
        out: tuple[int, ...],
        n: int,
        second: bool = False,
    ) -> None:
        self.args, self.kwargs, self.n = args, dict(kwargs), n
        self.edge, self.out = edge, out  # where the graph meets the result, and its shape
        self.second = second  # samples are the second dimension

    def bind(self, names: str, **defaults: Any) -> dict[str, Any]:
        """Arguments by name."""
        return defaults | dict(zip(names.split(), self.args, strict=False)) | self.kwargs

    def split(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(N*S, ...) as (N, S, ...), (N, ...) as it is; samples come first."""
        if self.second and len(shape) > 2:
            return (self.n, shape[0], *shape[2:])
        return shape if shape[0] == self.n else (self.n, shape[0] // self.n, *shape[1:])

    def outer(self, w: Tensor, x: Tensor, transposed: bool = False) -> Use:
        """The use of W in z = x W' or x W."""
        x = by_sample(x.detach(), self.n, self.second)
        x = x.reshape(self.n, prod(x.shape[:-1]) // self.n, x.shape[-1])
        return Outer(w, self.edge, self.split(self.out), x, transposed)

    def broadcast(self, w: Tensor, shape: Any = None, other: Tensor | None = None) -> Use | None:
        """The use of w in z = ... + w * other."""
        shape = tuple(w.shape) if shape is None else tuple(shape)
        shape = (1,) * (len(self.out) - len(shape)) + shape
        if self.second and len(shape) > 2:
            shape = (shape[1], shape[0], *shape[2:])
        if len(shape) != len(self.out) or shape[0] != 1:
            return None
        if len(self.split(self.out)) > len(self.out):
            shape = (1, *shape)
        if other is not None:
            other = by_sample(other.detach().expand(self.out), self.n, self.second)
            other = other.reshape(self.split(self.out))
        return Broadcast(w, self.edge, self.split(self.out), shape, other)


Found = list["Use | None"]


def _linear(call: ParameterCall, like: set[int]) -> Found:
    a = call.bind("input weight bias", bias=None)
    found: Found = []
    if id(a["weight"]) in like:
        found.append(call.outer(a["weight"], a["input"]))
    if id(a["bias"]) in like:
        found.append(call.broadcast(a["bias"]))
    return found + _only(like, a, "weight", "bias")


def _only(like: set[int], a: dict[str, Any], *names: str) -> Found:
    """[None], a refusal, where a parameter stands in another argument than ``names``."""
    others = (value for key, value in a.items() if key not in names)
    return [None] if any(id(value) in like for value in others) else []


def _matmul(call: ParameterCall, like: set[int]) -> Found:
    a = call.bind("input other")
    w = a["other"]
    if id(w) not in like or w.dim() != 2:
        return [None]
    return [call.outer(w, a["input"], transposed=True), *_only(like, a, "other")]


def _addmm(call: ParameterCall, like: set[int]) -> Found:
    a = call.bind("input mat1 mat2")
    if set(a) != {"input", "mat1", "mat2"}:
        return [None]
    found: Found = []
    if id(a["mat2"]) in like:
        found.append(call.outer(a["mat2"], a["mat1"], transposed=True))
    if id(a["input"]) in like:
        found.append(call.broadcast(a["input"]))
    return found + _only(like, a, "mat2", "input")


def _conv(call: ParameterCall, like: set[int]) -> Found:
    names = "input weight bias stride padding dilation groups"
    a = call.bind(names, bias=None, stride=1, padding=0, dilation=1, groups=1)
    w, x = a["weight"], a["input"]
    if isinstance(a["padding"], str) or call.out[0] != call.n or x.dim() != w.dim():
        return [None]
    rank = w.dim() - 2

    def each(value: Any) -> tuple[int, ...]:
        return (
            (value,) * rank
            if isinstance(value, int)
            else tuple(value) * (rank // len(tuple(value)))
        )

    found: Found = []
    if id(w) in like:
        geometry = (each(a["stride"]), each(a["padding"]), each(a["dilation"]), a["groups"])
        found.append(Convolution(w, call.edge, call.out, x.detach(), *geometry))
    if id(a["bias"]) in like:
        found.append(call.broadcast(a["bias"], (len(a["bias"]), *(1,) * rank)))
    return found + _only(like, a, "weight", "bias")


def _embedding(call: ParameterCall, like: set[int]) -> Found:
    names = "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse"
    a = call.bind(names, padding_idx=None, max_norm=None, scale_grad_by_freq=False)
    known = isinstance(a["weight"], Tensor) and id(a["weight"]) in like  # torch's own order differs
    if not known or a["max_norm"] is not None or a["scale_grad_by_freq"]:
        return [None]
    index, skip = a["input"].detach(), a["padding_idx"]
    if skip is not None:
        index = torch.where(index == skip % len(a["weight"]), -1, index)
    index = index.T if call.second else index
    index = index.reshape(call.n, -1)
    return [Lookup(a["weight"], call.edge, call.split(call.out), index)]


def _layer_norm(call: ParameterCall, like: set[int]) -> Found:
    names = "input normalized_shape weight bias eps"
    a = call.bind(names, weight=None, bias=None, eps=1e-5)
    unit = F.layer_norm(a["input"].detach(), a["normalized_shape"], None, None, a["eps"])
    return _affine(call, like, a, unit, 0)


def _rms_norm(call: ParameterCall, like: set[int]) -> Found:
    a = call.bind("input normalized_shape weight eps", weight=None, eps=None, bias=None)
    unit = F.rms_norm(a["input"].detach(), a["normalized_shape"], None, a["eps"])
    return _affine(call, like, a, unit, 0)


def _group_norm(call: ParameterCall, like: set[int]) -> Found:
    a = call.bind("input num_groups weight bias eps", weight=None, bias=None, eps=1e-5)
    unit = F.group_norm(a["input"].detach(), a["num_groups"], None, None, a["eps"])
    return _affine(call, like, a, unit, len(call.out) - 2)


def _batch_norm(call: ParameterCall, like: set[int]) -> Found:
    names = "input running_mean running_var weight bias training momentum eps"
    a = call.bind(names, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5)
    own = a["training"]
    mean, var = (None, None) if own else (a["running_mean"], a["running_var"])
    unit = F.batch_norm(a["input"].detach(), mean, var, None, None, own, 0.0, a["eps"])
    return _affine(call, like, a, unit, len(call.out) - 2)


def _affine(
    call: ParameterCall, like: set[int], a: dict[str, Any], unit: Tensor, after: int
) -> Found:
    """Scale and shift of a normalisation, with ``after`` dimensions behind theirs."""
    found: Found = []
    for name, other in (("weight", unit), ("bias", None)):
        w = a[name]
        if id(w) in like:
            found.append(call.broadcast(w, (*w.shape, *(1,) * after), other))
    return found + _only(like, a, "weight", "bias")


def _prelu(call: ParameterCall, like: set[int]) -> Found:
    a = call.bind("input weight")
    w, x = a["weight"], a["input"].detach()
    return [call.broadcast(w, (len(w), *(1,) * (x.dim() - 2)), x.clamp(max=0))]


def _add(call: ParameterCall, like: set[int]) -> Found:
    if len(call.args) != 2 or call.kwargs:
        return [None]
    return [call.broadcast(w) for w in call.args if id(w) in like]


def _multiply(call: ParameterCall, like: set[int]) -> Found:
    if len(call.args) != 2 or call.kwargs:
        return [None]
    left, right = call.args
    if id(left) in like:
        left, right = right, left
    return [None] if id(left) in like else [call.broadcast(right, other=left)]


USE_RULES = {"linear": _linear, "addmm": _addmm, "embedding": _embedding, "prelu": _prelu}
USE_RULES |= dict.fromkeys(("matmul", "__matmul__", "mm"), _matmul)
USE_RULES |= dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv)
USE_RULES |= {"layer_norm": _layer_norm, "rms_norm": _rms_norm}
USE_RULES |= {"group_norm": _group_norm, "batch_norm": _batch_norm}
USE_RULES |= dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), _add)
USE_RULES |= dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), _multiply)


def uses_of(
    func: Any, args: Any, kwargs: Any, out: Any, n: int, like: set[int], second: bool = False
) -> Found:
    """Uses of the parameters ``like`` (by id) in one call; [None] where no rule knows them.

    ``second`` says that samples are the second dimension of tensors of three.
    """
    rule = USE_RULES.get(getattr(func, "__name__", ""))
    good = rule is not None and isinstance(out, Tensor) and out.grad_fn is not None
    if rule is None or not good or out.dim() == 0:
        return [None]
    if not second and out.shape[0] % n and out.dim() > 2:
        second = out.shape[1] == n
    fits = out.shape[1] == n if second and out.dim() > 2 else out.shape[0] % n == 0
    if not fits or (second and rule is _conv):
        return [None]
    edge, shape = torch.autograd.graph.get_gradient_edge(out), tuple(out.shape)
    found = rule(ParameterCall(args, kwargs, edge, shape, n, second), like)
    for use in found:
        if use is not None:
            use.second = second
    return found
