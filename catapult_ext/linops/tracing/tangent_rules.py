"""How the tangents of an operation's arguments become those of its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from catapult_ext.linops.model.pass_context import weight_norm
from catapult_ext.linops.tracing.tensor_call import (
    Made,
    TensorCall,
    aten,
    by_formula,
    linear_operation,
)


def _reshape(call: TensorCall) -> Made:
    shape = call.out.shape
    return lambda tangents: tangents[0].reshape(shape), []


def _cat(call: TensorCall) -> Made:
    shapes = [t.shape for t in call.tensors]

    def rule(tangents: list[Tensor | None]) -> Tensor:
        some = next(d for d in tangents if d is not None)
        return call.again(
            [some.new_zeros(s) if d is None else d for d, s in zip(tangents, shapes, strict=True)]
        )

    return rule, []


def _sum_of(sign: float) -> Callable[[TensorCall], Made]:
    """Tangent of left + sign * alpha * right."""

    def make(call: TensorCall) -> Made:
        factor = sign * call.kwargs.get("alpha", call.args[2] if len(call.args) > 2 else 1)
        shape, scalar = call.out.shape, len(call.tensors) == 1

        def rule(tangents: list[Tensor | None]) -> Tensor:
            left, right = (tangents[0], None) if scalar else tangents
            if left is not None and right is not None:
                return torch.add(left, right, alpha=factor)
            out = left if right is None else factor * right
            assert out is not None
            return out if out.shape == shape else out.expand(shape)

        return rule, []

    return make


def _product(call: TensorCall) -> Made:
    """Bilinear in two tensors."""
    if len(call.tensors) == 1:
        return linear_operation(call)
    left, right = (t.detach() if call.active[1 - i] else None for i, t in enumerate(call.tensors))

    def rule(tangents: list[Tensor | None]) -> Tensor:
        dl, dr = tangents
        out = None if dl is None else call.again([dl, right])
        if dr is not None:
            if out is not None and call.func._overloadpacket is aten.mm:
                return out.addmm_(left, dr)  # no second result: logits may be the largest tensors
            if out is not None and call.func._overloadpacket is aten.bmm:
                return out.baddbmm_(left, dr)
            other = call.again([left, dr])
            out = other if out is None else out.add_(other)
        assert out is not None
        return out

    return rule, [t for i, t in enumerate(call.tensors) if call.active[1 - i]]


def _quotient(call: TensorCall) -> Made:
    if len(call.tensors) == 2 and not call.active[1]:
        divisor = call.tensors[1].detach()
        return lambda tangents: call.again([tangents[0], divisor]), [divisor]
    return linear_operation(call)


def _addmm(call: TensorCall) -> Made:
    _, left, right = (t.detach() for t in call.tensors)
    if call.kwargs or len(call.args) > 3:
        return by_formula(call)

    def rule(tangents: list[Tensor | None]) -> Tensor:
        d0, dl, dr = tangents
        out = None
        if dr is not None:
            out = left @ dr if d0 is None else torch.addmm(d0, left, dr)
        elif d0 is not None:
            out = d0.expand(len(left), right.shape[1])
        if out is None:
            assert dl is not None
            return dl @ right
        if dl is None:
            return out
        # in place where it is memory of its own: no second result
        return torch.addmm(out, dl, right) if dr is None else out.addmm_(dl, right)

    return rule, [left, right]


def _convolution(call: TensorCall) -> Made:
    x, w = (t.detach() for t in call.tensors[:2])
    shape, rest = call.out.shape, call.args[3:]

    def rule(tangents: list[Tensor | None]) -> Tensor:
        dx, dw, db = tangents if len(tangents) == 3 else (*tangents, None)
        out = None
        if dw is not None:
            out, db = aten.convolution(x, dw, db, *rest), None
        if dx is not None:
            other = aten.convolution(dx, w, db, *rest)
            out, db = other if out is None else out.add_(other), None
        if db is not None:
            out = db.view(1, -1, *(1,) * (len(shape) - 2)).expand(shape)
        assert out is not None
        return out

    return rule, [x, w]


def _batch_norm(call: TensorCall) -> Made:
    """Scale and shift of every channel; by batch statistics, also their derivatives.

    cuDNN's takes and returns the same, and a workspace of its backward at the end.
    """
    x, weight, bias, mean, var, training, _, eps = call.args
    by_batch, without = training or mean is None, [None] * (len(call.out) - 1)
    if by_batch:
        mean, root = (t.detach() for t in call.out[1:3])
        if mean.shape != (x.shape[1],) or mean.dtype != x.dtype:
            return by_formula(call)
        var = root.square().reciprocal() - eps
    else:
        root = torch.rsqrt(var + eps)
    has = [t is not None for t in (weight, bias)]
    x, weight = x.detach(), None if weight is None else weight.detach()
    factor = root if weight is None else root * weight
    shape = (1, -1, *(1,) * (x.dim() - 2))

    def rule(tangents: list[Tensor | None]) -> Any:
        left = iter(tangents[1:])
        dw, db = (next(left) if there else None for there in has)
        dx, out = tangents[0], None
        if by_batch and dx is not None:  # symmetric up to the factor: backward is forward
            rest = (weight, None, None, mean, root, True, eps, [True, False, False])
            out, dx = aten.native_batch_norm_backward(dx, x, *rest)[0], None
        if dw is not None:
            shift = torch.zeros_like(dw) if db is None else db
            own = torch.batch_norm(x, dw, shift, mean, var, False, 0.0, eps, False)
            out = own if out is None else out.add_(own)
        elif db is not None:
            own = db.view(shape)
            out = own.expand(x.shape) if out is None else out.add_(own)
        if dx is not None:
            scale = factor.view(shape)
            out = dx * scale if out is None else torch.addcmul(out, dx, scale)
        return out, *without

    return rule, [x] if by_batch else [x, mean, var]


def _embedding(call: TensorCall) -> Made:
    """Torch's own formula gives the padding row a tangent, which has no gradient."""
    weight, indices = call.args[:2]
    padding = call.args[2] if len(call.args) > 2 else -1
    if not isinstance(weight, Tensor) or any(call.args[3:]) or call.kwargs:
        return by_formula(call)
    indices = indices.detach()
    alive = None if padding < 0 else (indices != padding).unsqueeze(-1)

    def rule(tangents: list[Tensor | None]) -> Tensor:
        out: Tensor = aten.embedding(tangents[0], indices)
        return out if alive is None else out * alive

    return rule, [indices]


def _weight_norm(call: TensorCall) -> Made:
    """No formula: torch has none for its fused kernel."""
    call.func = lambda *args: (weight_norm(*args), None)
    return by_formula(call)


def _relu(call: TensorCall) -> Made:
    out = call.out.detach()
    return lambda tangents: aten.threshold_backward(tangents[0], out, 0), [call.out]


STOPS = {aten.detach.default, aten.ones_like.default, aten.zeros_like.default}
WITHOUT_VALUE = {aten.relu, aten.add, aten.sub, aten.mul, aten.div, aten.neg}
SHAPES = {aten.transpose, aten.t, aten.squeeze, aten.unsqueeze}
TANGENT_RULES: dict[Any, Callable[[TensorCall], Made]] = {}
TANGENT_RULES |= dict.fromkeys(
    (aten.t, aten.transpose, aten.permute, aten.alias, aten.expand), linear_operation
)
TANGENT_RULES |= dict.fromkeys(
    (aten.slice, aten.select, aten.squeeze, aten.unsqueeze), linear_operation
)
TANGENT_RULES |= dict.fromkeys((aten.split, aten.split_with_sizes, aten.unbind), linear_operation)
TANGENT_RULES |= dict.fromkeys(
    (aten.clone, aten._to_copy, aten.neg, aten.sum, aten.mean), linear_operation
)
TANGENT_RULES |= dict.fromkeys(
    (aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d), linear_operation
)
TANGENT_RULES |= dict.fromkeys(
    (aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d), linear_operation
)
TANGENT_RULES[aten.constant_pad_nd] = linear_operation
TANGENT_RULES |= dict.fromkeys((aten.view, aten._unsafe_view, aten._reshape_alias), _reshape)
TANGENT_RULES |= {aten.cat: _cat, aten.stack: _cat, aten.add: _sum_of(1.0), aten.sub: _sum_of(-1.0)}
TANGENT_RULES |= dict.fromkeys((aten.mul, aten.mm, aten.bmm), _product)
TANGENT_RULES |= {aten.div: _quotient, aten.addmm: _addmm, aten.convolution: _convolution}
TANGENT_RULES |= {aten.native_batch_norm: _batch_norm, aten.relu: _relu, aten.embedding: _embedding}
TANGENT_RULES[aten.cudnn_batch_norm] = _batch_norm
TANGENT_RULES |= {aten._weight_norm_interface: _weight_norm}
