"""How the tangents of an operation's arguments become those of its results.

A rule is made when the operation is recorded, and keeps what it needs of the values then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from catapult_ext.linops.model.pass_context import weight_norm
from catapult_ext.linops.model.policy import SHARED_STATE

aten: Any = torch.ops.aten
Rule = Callable[[list[Tensor | None]], Any]  # tangents of tensor arguments to those of results
Made = tuple[Rule, list[Tensor]]  # a rule, and the tensors whose values it keeps


@dataclass(eq=False)
class TensorCall:
    """One operation as it ran; ``tensors`` are the tensor arguments in order."""

    func: Any
    args: Any
    kwargs: Any
    out: Any
    tensors: list[Tensor]
    active: list[bool]

    @cached_property
    def _places(self) -> list[int] | None:
        """Where the tensors stand among ``args``; None where one lies deeper."""
        places = [i for i, a in enumerate(self.args) if isinstance(a, Tensor)]
        return places if len(places) == len(self.tensors) else None

    def forget(self) -> None:
        """Let go of the result, and of arguments that :meth:`again` replaces.

        Rules keep the values that they need: what a rule does not need is not to stay in memory.
        """
        self.out = None
        if self._places is not None:
            held = set(self._places)
            self.args = tuple(None if i in held else a for i, a in enumerate(self.args))
            self.tensors = []

    def again(self, values: Sequence[Any]) -> Any:
        """The operation on other tensors."""
        if self._places is not None:
            given = list(self.args)
            for place, value in zip(self._places, values, strict=True):
                given[place] = value
            return self.func(*given, **self.kwargs)
        left = iter(values)
        args, kwargs = tree_map_only(Tensor, lambda _: next(left), (self.args, self.kwargs))
        return self.func(*args, **kwargs)


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    """``value`` with a tangent.

    Torch lays a tangent out as its value.  Where elements of the value share memory (expanded, or
    windows that overlap), it raises, or elements of the tangent overwrite each other.
    """
    overlap = torch._debug_has_internal_overlap(value)  # 0: none, 1: some, 2: not known
    shared = overlap == 1 or (overlap == 2 and value.stride() != tangent.stride())
    return forward_ad.make_dual(value.contiguous() if shared else value, tangent)


def by_formula(call: TensorCall) -> Made:
    """The forward-mode formula at the recorded inputs."""
    linearization = [t.detach() for t in call.tensors]

    def rule(tangents: list[Tensor | None]) -> Any:
        with SHARED_STATE, forward_ad.dual_level():  # one level for all threads of a process
            out = call.again(
                [
                    t if d is None else _dual(t, d)
                    for t, d in zip(linearization, tangents, strict=True)
                ]
            )
            flat, spec = tree_flatten(out)
            found = [
                forward_ad.unpack_dual(t).tangent if isinstance(t, Tensor) else None for t in flat
            ]
            return found[0] if isinstance(out, Tensor) else tree_unflatten(found, spec)

    return rule, call.tensors


def _linear(call: TensorCall) -> Made:
    """An operation that is linear in its only tensor."""

    def rule(tangents: list[Tensor | None]) -> Any:
        return call.again(tangents)

    return (rule, []) if len(call.tensors) == 1 else by_formula(call)


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
        return _linear(call)
    left, right = (t.detach() if call.active[1 - i] else None for i, t in enumerate(call.tensors))

    def rule(tangents: list[Tensor | None]) -> Tensor:
        dl, dr = tangents
        out = None if dl is None else call.again([dl, right])
        if dr is not None:
            if out is not None and call.func._overloadpacket is aten.mm:
                return out.addmm_(left, dr)  # no second result: logits may be the largest tensors
            other = call.again([left, dr])
            out = other if out is None else out.add_(other)
        assert out is not None
        return out

    return rule, [t for i, t in enumerate(call.tensors) if call.active[1 - i]]


def _quotient(call: TensorCall) -> Made:
    if len(call.tensors) == 2 and not call.active[1]:
        divisor = call.tensors[1].detach()
        return lambda tangents: call.again([tangents[0], divisor]), [divisor]
    return _linear(call)


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


STOPS = {aten.detach.default}
WITHOUT_VALUE = {aten.relu, aten.add, aten.sub, aten.mul, aten.div, aten.neg}
SHAPES = {aten.transpose, aten.t, aten.squeeze, aten.unsqueeze}
TANGENT_RULES: dict[Any, Callable[[TensorCall], Made]] = {}
TANGENT_RULES |= dict.fromkeys(
    (aten.t, aten.transpose, aten.permute, aten.alias, aten.expand), _linear
)
TANGENT_RULES |= dict.fromkeys((aten.slice, aten.select, aten.squeeze, aten.unsqueeze), _linear)
TANGENT_RULES |= dict.fromkeys((aten.split, aten.split_with_sizes, aten.unbind), _linear)
TANGENT_RULES |= dict.fromkeys((aten.clone, aten._to_copy, aten.neg, aten.sum, aten.mean), _linear)
TANGENT_RULES |= dict.fromkeys((aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d), _linear)
TANGENT_RULES |= dict.fromkeys((aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d), _linear)
TANGENT_RULES[aten.constant_pad_nd] = _linear
TANGENT_RULES |= dict.fromkeys((aten.view, aten._unsafe_view, aten._reshape_alias), _reshape)
TANGENT_RULES |= {aten.cat: _cat, aten.stack: _cat, aten.add: _sum_of(1.0), aten.sub: _sum_of(-1.0)}
TANGENT_RULES |= dict.fromkeys((aten.mul, aten.mm, aten.bmm), _product)
TANGENT_RULES |= {aten.div: _quotient, aten.addmm: _addmm, aten.convolution: _convolution}
TANGENT_RULES |= {aten.native_batch_norm: _batch_norm, aten.relu: _relu, aten.embedding: _embedding}
TANGENT_RULES[aten.cudnn_batch_norm] = _batch_norm
TANGENT_RULES |= {aten._weight_norm_interface: _weight_norm}
