"""The empirical neural tangent kernel of dense layers from their factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from catapult_ext import _native, _validate
from catapult_ext.ops._registry import register

_WHERE = "gram"
_OUTPUTS = ("all", "trace", "diagonal")
Precision = Literal["full", "tf32", "3xtf32"]
_PRECISIONS = get_args(Precision)


def gram(
    a: Sequence[Tensor],
    g: Sequence[Tensor],
    *,
    scale: Sequence[float],
    bias: Sequence[float],
    a2: Sequence[Tensor] | None = None,
    g2: Sequence[Tensor] | None = None,
    outputs: str = "all",
    precision: Precision = "full",
) -> Tensor:
    """Sum over dense layers of (scale A A2' + bias) o (G G2'), the NTK in the sum convention.

    It is the kernel of one network, or of R networks of one architecture if every tensor has a
    leading dimension R.

    With a_l the input of layer l and g_l[n, o] = d f_no / d z_l the derivative of output o by the
    layer's pre-activation, the parameters of layer l contribute
    ``(scale_l a_l[n].a2_l[m] + bias_l) (g_l[n, o].g2_l[m, q])`` to Theta[(n, o), (m, q)]
    (Jacot et al. 2018; the layer-wise form of Novak et al. 2022). No 1/N.

    Args:
        a: L tensors (N1, d_l), or (R, N1, d_l), float32 or float64.
        g: L tensors (N1, O, p_l), or (R, N1, O, p_l), same dtype and device.
        scale: L factors of A A2': sigma_w^2 / fan_in, or 1 for a standard layer.
        bias: L constants: sigma_b^2, 1 for a standard bias, 0 without one.
        a2: inputs (N2, d_l), or (R, N2, d_l), of the second batch; None for the symmetric kernel
            of a and g.
        g2: derivatives (N2, O, p_l), or (R, N2, O, p_l), of the second batch; needed with a2.
        outputs: ``"all"``, ``"trace"`` (sum over o = q) or ``"diagonal"`` (n = m and o = q).
        precision: precision of float32 products on a GPU: ``"full"``, ``"tf32"`` (tensor cores,
            inputs rounded to 10 bits of mantissa) or ``"3xtf32"`` (tensor cores, three products,
            near full). The CPU, float64 and several networks always compute in full precision.

    Returns:
        ``"all"``: (N1*O, N2*O), flat index n*O + o. ``"trace"``: (N1, N2). ``"diagonal"``: (N1*O,).
        For several networks each has a leading dimension R. The symmetric kernel is symmetric bit
        for bit: one triangle is computed and mirrored. Non-finite values affect only the rows and
        columns of their sample. The bits do not depend on the number of threads.

    Raises:
        TypeError: not tensors of float32 or float64, or of different dtypes.
        ValueError: no layer, shapes or lengths that do not fit, different devices, an unknown
            ``outputs``, or an input that requires grad.

    Cost:
        For each network sum_l N1 N2 d_l + N1 N2 O^2 p_l multiply-adds (trace: O p_l; diagonal: N1
        (d_l + O p_l)), half of it in the symmetric case. No temporary has the size of the result.
        If there are many networks, each thread computes one at a time.

    Examples:
        >>> a, g = torch.randn(6, 3), torch.randn(6, 1, 2)
        >>> cx.ops.gram([a], [g], scale=[1.0], bias=[1.0]).shape
        torch.Size([6, 6])
    """
    _validate.listed(_WHERE, a=a, g=g)
    _validate.number_lists(_WHERE, scale=scale, bias=bias)
    _validate.require(len(a) > 0, _WHERE, "a must list at least one layer", len(a))
    _validate.require(outputs in _OUTPUTS, _WHERE, f"outputs must be one of {_OUTPUTS}", outputs)
    _validate.require(
        precision in _PRECISIONS, _WHERE, f"precision must be one of {_PRECISIONS}", precision
    )
    both = (a2 is None) == (g2 is None)
    _validate.require(both, _WHERE, "a2 and g2 must be given together", "one of them")
    tensors = _check_side("a", "g", a, g, a, g)
    for name, values in (("scale", scale), ("bias", bias)):
        _validate.require(
            len(values) == len(a), _WHERE, f"{name} must list {len(a)} layers", len(values)
        )
    if a2 is not None and g2 is not None:
        _validate.listed(_WHERE, a2=a2, g2=g2)
        tensors |= _check_side("a2", "g2", a2, g2, a, g)
        _validate.require(
            outputs != "diagonal" or a2[0].shape[-2] == a[0].shape[-2],
            _WHERE,
            f"outputs='diagonal' needs as many samples in a2 as in a, {a[0].shape[-2]}",
            a2[0].shape[-2],
        )
    _validate.same_kind(_WHERE, tensors)
    _validate.no_grad_needed(_WHERE, tensors)
    return torch.ops.catapult.gram(
        list(a),
        list(g),
        list(a2 or []),
        list(g2 or []),
        [float(s) for s in scale],
        [float(b) for b in bias],
        _OUTPUTS.index(outputs),
        _PRECISIONS.index(precision),
    )


def _check_side(
    a_name: str,
    g_name: str,
    a: Sequence[Tensor],
    g: Sequence[Tensor],
    like_a: Sequence[Tensor],
    like_g: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Check one batch's factors: its own sample count, widths and outputs as in ``like_*``."""
    for name, values in ((a_name, a), (g_name, g)):
        _validate.require(
            len(values) == len(like_a),
            _WHERE,
            f"{name} must list {len(like_a)} layers",
            len(values),
        )
    tensors = {}
    several = isinstance(like_a[0], Tensor) and like_a[0].dim() == 3
    replicas: tuple[int | str, ...] = (like_a[0].shape[0],) if several else ()
    samples: int | str = f"{a_name} samples"
    outputs: int | str = "O"
    for layer in range(len(a)):
        a_at, g_at = f"{a_name}[{layer}]", f"{g_name}[{layer}]"
        own = a_name == "a"
        width = "d" if own else like_a[layer].shape[-1]
        tensors[a_at] = _validate.tensor(a[layer], _WHERE, a_at, (*replicas, samples, width))
        samples = a[0].shape[-2]
        width = "p" if own else like_g[layer].shape[-1]
        outputs = outputs if own else like_g[0].shape[-2]
        shape = (*replicas, samples, outputs, width)
        tensors[g_at] = _validate.tensor(g[layer], _WHERE, g_at, shape)
        outputs = g[0].shape[-2]
    return tensors


def _fake(
    a: list[Tensor],
    g: list[Tensor],
    a2: list[Tensor],
    g2: list[Tensor],
    scale: list[float],
    bias: list[float],
    outputs: int,
    precision: int,
) -> Tensor:
    *replicas, samples, width, _ = g[0].shape
    samples2 = g2[0].shape[-3] if g2 else samples
    if _OUTPUTS[outputs] == "trace":
        return a[0].new_empty((*replicas, samples, samples2))
    if _OUTPUTS[outputs] == "diagonal":
        return a[0].new_empty((*replicas, samples * width))
    return a[0].new_empty((*replicas, samples * width, samples2 * width))


def _impl(
    a: list[Tensor],
    g: list[Tensor],
    a2: list[Tensor],
    g2: list[Tensor],
    scale: list[float],
    bias: list[float],
    outputs: int,
    precision: int,
) -> Tensor:
    out = _fake(a, g, a2, g2, scale, bias, outputs, precision)
    sides = [[t.contiguous() for t in side] for side in (a, g, a2, g2)]
    _native.call("gram", out.device, *sides, scale, bias, outputs, precision, out)
    return out


register(
    "gram(Tensor[] a, Tensor[] g, Tensor[] a2, Tensor[] g2, float[] scale, float[] bias, "
    "int outputs, int precision) -> Tensor",
    _impl,
    _fake,
)
