"""Tangents of normalisations, activations and what backward passes are made of.

A backward operation is linear in the gradient that it is given, with a derivative by the recorded
values that torch's formulas mostly compute anew for every product; here it is a kept factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from catapult_ext.linops.tracing.tensor_call import (
    Made,
    TensorCall,
    aten,
    by_formula,
    linear_operation,
)


def _elementwise(call: TensorCall) -> Made:
    """Each entry of the result is of the entries in its place: a factor for each argument.

    Factors are made by autograd before the first product, and take the places of the arguments.
    """
    shapes = {t.shape for t in call.tensors}
    if len(shapes) > 1 or not isinstance(call.out, Tensor) or call.out.shape not in shapes:
        return by_formula(call)
    values, active = [t.detach() for t in call.tensors], list(call.active)

    @cache
    def factors() -> list[Tensor | None]:
        with torch.inference_mode(False), torch.enable_grad():
            given = [t.requires_grad_(a) for t, a in zip(values, active, strict=True)]
            inputs = [t for t, a in zip(given, active, strict=True) if a]
            out = call.again(given)
            found = iter(torch.autograd.grad(out, inputs, torch.ones_like(out)))
        values.clear()
        return [next(found) if a else None for a in active]

    def rule(tangents: list[Tensor | None]) -> Tensor:
        out = None
        for factor, d in zip(factors(), tangents, strict=True):
            if factor is not None and d is not None:
                out = factor * d if out is None else torch.addcmul(out, factor, d)
        assert out is not None
        return out

    return rule, list(call.tensors)


def _linear_in_gradient(call: TensorCall) -> Made:
    """The other tensors tell places or sizes alone."""
    rest = [t.detach() for t in call.tensors[1:]]

    def rule(tangents: list[Tensor | None]) -> Tensor | None:
        return None if tangents[0] is None else call.again([tangents[0], *rest])

    return rule, list(call.tensors[1:])


def _log_softmax(call: TensorCall) -> Made:
    out, dim = call.out.detach(), call.args[1]
    shares = cache(out.exp)

    def rule(tangents: list[Tensor | None]) -> Tensor:
        (d,) = tangents
        assert d is not None
        return d - (shares() * d).sum(dim, keepdim=True)

    return rule, [call.out]


def _log_softmax_backward(call: TensorCall) -> Made:
    """Rule for g - p sum(g), p = exp(out)."""
    g, out = (t.detach() for t in call.tensors)
    dim = call.args[2]
    shares = cache(out.exp)
    curved = cache(lambda: shares() * g.sum(dim, keepdim=True))

    def rule(tangents: list[Tensor | None]) -> Tensor:
        dg, do = tangents
        found = None if dg is None else dg - shares() * dg.sum(dim, keepdim=True)
        if do is not None:
            found = (
                -curved() * do if found is None else torch.addcmul(found, curved(), do, value=-1)
            )
        assert found is not None
        return found

    return rule, list(call.tensors)


def _softmax(call: TensorCall) -> Made:
    """Rule for p (d - sum(p d)), which is its own transpose."""
    p, dim = call.out.detach(), call.args[1]
    if p.dtype != call.tensors[0].dtype:
        return by_formula(call)
    return lambda tangents: aten._softmax_backward_data(tangents[0], p, dim, p.dtype), [call.out]


def _softmax_backward(call: TensorCall) -> Made:
    """Rule for p (g - sum(g p))."""
    g, p = (t.detach() for t in call.tensors)
    dim, dtype = call.args[2:4]
    if p.dtype != dtype:
        return by_formula(call)
    rest = cache(lambda: g - (g * p).sum(dim, keepdim=True))

    def rule(tangents: list[Tensor | None]) -> Tensor:
        dg, dp = tangents
        out = None if dg is None else aten._softmax_backward_data(dg, p, dim, dtype)
        if dp is not None:
            own = (dp * rest()).addcmul_(p, (g * dp).sum(dim, keepdim=True), value=-1)
            out = own if out is None else out.add_(own)
        assert out is not None
        return out

    return rule, list(call.tensors)


class _LayerNorm:
    """Layer norm whose mean and standard deviation are differentiated as functions of x."""

    def __init__(self, x: Tensor, shape: Sequence[int], mean: Tensor, root: Tensor) -> None:
        self.x, self.shape = x, shape
        self.mean, self.root = mean, root
        self.over = list(range(x.dim() - len(shape), x.dim()))
        self.rows = list(range(x.dim() - len(shape)))

    def normalised(self) -> Tensor:
        """The values less their mean, over their deviation."""
        return (self.x - self.mean) * self.root

    def pushed(self, d: Tensor) -> Tensor:
        """The derivative of the normalised x along d, which is its own transpose."""
        rest = (self.x, self.shape, self.mean, self.root, None, None, [True, False, False])
        return aten.native_layer_norm_backward(d, *rest)[0]


def _layer_norm(call: TensorCall) -> Made:
    x, shape, weight, bias, _ = call.args
    mean, root = (t.detach() for t in call.out[1:])
    if mean.dtype != x.dtype:
        return by_formula(call)
    has = [t is not None for t in (weight, bias)]
    norm = _LayerNorm(x.detach(), shape, mean, root)
    weight = None if weight is None else weight.detach()
    unit = cache(norm.normalised)

    def rule(tangents: list[Tensor | None]) -> tuple[Tensor | None, None, None]:
        left = iter(tangents[1:])
        dw, db = (next(left) if there else None for there in has)
        dx, out = tangents[0], None
        if dx is not None:
            out = norm.pushed(dx)
            out = out if weight is None else out * weight
        if dw is not None:
            out = unit() * dw if out is None else torch.addcmul(out, unit(), dw)
        if db is not None:
            out = db.expand(norm.x.shape) if out is None else out + db
        return out, None, None

    return rule, [x, mean, root]


def _layer_norm_backward(call: TensorCall) -> Made:
    """Rule for (s (v - mean(v) - u mean(u v)), sum(g u), sum(g)), u normalised x, v = g weight."""
    g, x, shape, mean, root, weight, bias, mask = call.args
    if mean.dtype != x.dtype or g.dtype != x.dtype:
        return by_formula(call)
    has = [t is not None for t in (weight, bias)]
    norm = _LayerNorm(x.detach(), shape, mean.detach(), root.detach())
    g, weight = g.detach(), None if weight is None else weight.detach()
    over, rows = norm.over, norm.rows

    @cache
    def kept() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u = norm.normalised()
        v = g if weight is None else g * weight
        return u, v, (v * u).mean(over, keepdim=True), norm.pushed(v)

    def rule(tangents: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        u, v, share, pulled = kept()
        dg, dx = tangents[:2]
        dw = tangents[4] if has[0] else None
        to_x, to_weight, moved = None, None, None
        if dg is not None:
            moved = dg if weight is None else dg * weight
            to_weight = dg * u
        if dw is not None:
            moved = g * dw if moved is None else torch.addcmul(moved, g, dw)
        if moved is not None and mask[0]:
            to_x = norm.pushed(moved)
        if dx is not None:
            du = norm.pushed(dx)
            if mask[1]:
                to_weight = g * du if to_weight is None else to_weight.addcmul_(g, du)
            if mask[0]:
                bend = (v * du).mean(over, keepdim=True)
                own = (du * share).addcmul_(u, bend).mul_(norm.root).neg_()
                shrink = (u * dx).mean(over, keepdim=True) * norm.root
                own.addcmul_(pulled, shrink, value=-1)
                to_x = own if to_x is None else to_x.add_(own)
        sums = [
            t.sum(rows) if t is not None and wanted else None
            for t, wanted in ((to_weight, mask[1]), (dg, mask[2]))
        ]
        return to_x, *sums

    return rule, [t for t in (g, x, mean, root, weight) if t is not None]


def _batch_norm_backward(call: TensorCall) -> Made:
    """Rule for running statistics: (g weight s, sum(g u), sum(g)), u the normalised x."""
    g, x, weight, mean, var, _, _, training, eps, mask = call.args
    if training or mean is None:  # torch would compile a formula, for seconds
        raise ValueError("batch statistics")
    g, x = g.detach(), x.detach()
    has_weight = weight is not None
    weight = None if weight is None else weight.detach()
    root, none = torch.rsqrt(var + eps), torch.zeros_like(mean)
    shape = (1, -1, *(1,) * (x.dim() - 2))

    def pulled(d: Tensor, of: Tensor, centre: Tensor, wanted: list[bool]) -> list[Tensor | None]:
        rest = (weight, centre, var, None, None, False, eps, wanted)
        return list(aten.native_batch_norm_backward(d, of, *rest))

    def rule(tangents: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        dg, dx = tangents[:2]
        dw = tangents[2] if has_weight else None
        to_x, to_weight, to_bias = (
            [None] * 3 if dg is None else pulled(dg, x, mean, mask)  # those that are wanted
        )
        if dx is not None and mask[1]:
            own = pulled(g, dx, none, [False, True, False])[1]
            to_weight = own if to_weight is None or own is None else to_weight.add_(own)
        if dw is not None and mask[0]:
            scale = (dw * root).view(shape)
            to_x = g * scale if to_x is None else to_x.addcmul_(g, scale)
        return tuple(
            t if m else None for t, m in zip((to_x, to_weight, to_bias), mask, strict=True)
        )

    return rule, [g, x, mean, var]


def _convolution_backward(call: TensorCall) -> Made:
    """Linear in the gradient; what goes to x is linear in the filters, and the reverse."""
    g, x, w = (t.detach() for t in call.tensors)
    rest, mask = call.args[3:-1], call.args[-1]

    def pulled(d: Tensor, to: Tensor, by: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
        return aten.convolution_backward(d, to, by, *rest, wanted)

    def rule(tangents: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        dg, dx, dw = tangents
        found: list[Tensor | None] = [None] * 3 if dg is None else list(pulled(dg, x, w, mask))
        if dw is not None and mask[0]:
            own = pulled(g, x, dw, [True, False, False])[0]
            found[0] = own if found[0] is None else found[0].add_(own)
        if dx is not None and mask[1]:
            own = pulled(g, dx, w, [False, True, False])[1]
            found[1] = own if found[1] is None else found[1].add_(own)
        return tuple(t if m else None for t, m in zip(found, mask, strict=True))

    return rule, [g, x, w]


def _max_pool(call: TensorCall) -> Made:
    """The tangents of the largest entries."""
    places, flat = call.out[1].detach(), call.out[1].flatten(-2)

    def rule(tangents: list[Tensor | None]) -> tuple[Tensor, None]:
        (d,) = tangents
        assert d is not None
        return d.flatten(-2).gather(-1, flat).view(places.shape), None

    return rule, [places]


def _loss(call: TensorCall) -> Made:
    """Linear in what it is given; the sum of weights beside it is constant."""
    rest = [t.detach() for t in call.tensors[1:]]
    return lambda tangents: (call.again([tangents[0], *rest])[0], None), list(call.tensors[1:])


GRADIENT_RULES: dict[object, Callable[[TensorCall], Made]] = {}
GRADIENT_RULES |= dict.fromkeys(
    (aten.gelu, aten.silu, aten.tanh, aten.sigmoid, aten.softplus, aten.elu, aten.exp, aten.log),
    _elementwise,
)
GRADIENT_RULES |= dict.fromkeys((aten.pow, aten.sqrt, aten.rsqrt), _elementwise)
GRADIENT_RULES |= dict.fromkeys(
    (aten.gelu_backward, aten.silu_backward, aten.tanh_backward, aten.sigmoid_backward),
    _elementwise,
)
GRADIENT_RULES |= dict.fromkeys((aten.softplus_backward, aten.elu_backward), _elementwise)
GRADIENT_RULES |= dict.fromkeys(
    (aten.threshold_backward, aten.leaky_relu_backward, aten.nll_loss_backward), _linear_in_gradient
)
GRADIENT_RULES |= dict.fromkeys(
    (
        aten.nll_loss2d_backward,
        aten.embedding_dense_backward,
        aten.max_pool2d_with_indices_backward,
    ),
    _linear_in_gradient,
)
GRADIENT_RULES |= dict.fromkeys(
    (aten.avg_pool2d_backward, aten._adaptive_avg_pool2d_backward), _linear_in_gradient
)
GRADIENT_RULES |= dict.fromkeys((aten.slice_backward, aten.select_backward), linear_operation)
GRADIENT_RULES |= dict.fromkeys((aten.nll_loss_forward, aten.nll_loss2d_forward), _loss)
GRADIENT_RULES |= {
    aten.max_pool2d_with_indices: _max_pool,
    aten._log_softmax: _log_softmax,
    aten._log_softmax_backward_data: _log_softmax_backward,
    aten._softmax_backward_data: _softmax_backward,
    aten.native_layer_norm: _layer_norm,
    aten.native_layer_norm_backward: _layer_norm_backward,
    aten.native_batch_norm_backward: _batch_norm_backward,
    aten.convolution_backward: _convolution_backward,
}
GRADIENT_RULES |= dict.fromkeys((aten._softmax, aten._safe_softmax), _softmax)
