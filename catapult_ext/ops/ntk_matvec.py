"""Products with the empirical neural tangent kernel of chains of dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from catapult_ext import _native, _validate
from catapult_ext.ops._registry import register
from catapult_ext.ops.routes import serves

_WHERE = "ntk_matvec"


def ntk_matvec(
    v: Tensor,
    *,
    weights: Sequence[Tensor],
    inputs: Sequence[Tensor],
    slopes: Sequence[Tensor],
    scale: Sequence[float],
    bias: Sequence[float],
    grams: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Theta V for R chains of L dense layers with element-wise activations, K vectors each.

    Layer l maps its input a_l to ``z_l = sqrt(scale_l) a_l W_l' + sqrt(bias_l) b_l``; the next
    input is phi(z_l). Nothing of the forward pass is repeated: a vector goes back through the
    frozen slopes, each layer turns what arrives there, G_l, into its source, and the sources go
    forward. In sample space the source is ``(scale_l A_l A_l' + bias_l) G_l`` from a cached
    ``A_l A_l'``, and no weight-shaped buffer exists; in weight space it is
    ``scale_l A_l (G_l' A_l)' + bias_l 1 1' G_l``. Sample space takes fewer operations where
    N < 2 d; the two may be mixed.

    Args:
        v: (R, N*O, K), float32 or float64, flat index n*O + o.
        weights: L tensors (R, p_l, d_l), raw: without the factor sqrt(scale_l).
        inputs: L tensors (R, N, d_l), the inputs a_l of the layers.
        slopes: L - 1 tensors (R, N, p_l), phi'(z_l).
        scale: L numbers, sigma_w^2 / fan_in, or 1 for a standard layer.
        bias: L numbers, sigma_b^2; 1 for a standard bias, 0 without one.
        grams: per layer the cached (R, N, N) product A_l A_l', or None for weight space; None for
            weight space throughout.

    Returns:
        (R, N*O, K), the products with the kernel in the sum convention (no 1/N). The same bits for
        any number of threads.

    Raises:
        TypeError: not tensors of float32 or float64, or of different dtypes.
        ValueError: no layer, shapes or lengths that do not fit, different devices, a negative
            scale or bias, or an input that requires grad.

    Cost:
        Per layer and vector 2 N p d multiply-adds (none for the first layer) plus N^2 p in
        sample space or 2 N p d in weight space; memory 2 N p K, and p d K in weight space. On a
        GPU, layers of more than 1.5e8 operations go to torch's GEMMs instead of the kernel.
    """
    _validate.listed(_WHERE, weights=weights, inputs=inputs, slopes=slopes)
    _validate.number_lists(_WHERE, scale=scale, bias=bias)
    layers = len(weights)
    _validate.require(layers > 0, _WHERE, "weights must list at least one layer", layers)
    lengths = {"inputs": inputs, "scale": scale, "bias": bias}
    if grams is not None:
        _validate.listed(_WHERE, grams=grams)
        lengths["grams"] = grams
    for name, values in lengths.items():
        _validate.require(
            len(values) == layers, _WHERE, f"{name} must list {layers} layers", len(values)
        )
    _validate.require(
        len(slopes) == layers - 1, _WHERE, f"slopes must list {layers - 1} layers", len(slopes)
    )
    for name, numbers in (("scale", scale), ("bias", bias)):
        _validate.require(min(numbers) >= 0, _WHERE, f"{name} must not be negative", list(numbers))
    tensors = _check_tensors(v, weights, inputs, slopes, grams)
    _validate.same_kind(_WHERE, tensors)
    _validate.no_grad_needed(_WHERE, tensors)
    return torch.ops.catapult.ntk_matvec(
        v,
        list(weights),
        list(inputs),
        list(slopes),
        [float(s) for s in scale],
        [float(b) for b in bias],
        [None] * layers if grams is None else list(grams),
    )


def _check_tensors(
    v: Tensor,
    weights: Sequence[Tensor],
    inputs: Sequence[Tensor],
    slopes: Sequence[Tensor],
    grams: Sequence[Tensor | None] | None,
) -> dict[str, Tensor]:
    tensors = {"v": _validate.tensor(v, _WHERE, "v", ("R", "N*O", "K"))}
    replicas = v.shape[0]
    samples: int | str = "N"
    width: int | str = "d"

    def add(name: str, value: object, shape: tuple[int | str, ...]) -> Tensor:
        tensors[name] = _validate.tensor(value, _WHERE, name, shape)
        return tensors[name]

    for layer in range(len(weights)):
        weight = add(f"weights[{layer}]", weights[layer], (replicas, "p", width))
        width = weight.shape[1]
        own = add(f"inputs[{layer}]", inputs[layer], (replicas, samples, weight.shape[2]))
        samples = own.shape[1]
        if layer < len(slopes):
            add(f"slopes[{layer}]", slopes[layer], (replicas, samples, width))
        gram = None if grams is None else grams[layer]
        if gram is not None:
            add(f"grams[{layer}]", gram, (replicas, samples, samples))
    assert isinstance(samples, int)
    assert isinstance(width, int)
    _validate.tensor(v, _WHERE, "v", (replicas, samples * width, "K"))
    return tensors


def _fake(
    v: Tensor,
    weights: list[Tensor],
    inputs: list[Tensor],
    slopes: list[Tensor],
    scale: list[float],
    bias: list[float],
    grams: list[Tensor | None],
) -> Tensor:
    return v.new_empty(v.shape)


def _by_torch(
    v: Tensor,
    weights: list[Tensor],
    inputs: list[Tensor],
    slopes: list[Tensor],
    scale: list[float],
    bias: list[float],
    grams: list[Tensor | None],
) -> Tensor:
    """The product of :func:`ntk_matvec` by torch's GEMMs, vectors stacked in (R, K, N, width)."""
    replicas, _, vectors = v.shape
    samples = inputs[0].shape[1]

    def stacked(x: Tensor, w: Tensor) -> Tensor:  # one GEMM over all vectors of a replica
        return torch.bmm(x.flatten(1, 2), w).unflatten(1, (vectors, samples))

    g = v.mT.reshape(replicas, vectors, samples, weights[-1].shape[1])
    grads = [g]
    for layer in reversed(range(1, len(weights))):
        g = stacked(g, weights[layer]).mul_(slopes[layer - 1][:, None]).mul_(sqrt(scale[layer]))
        grads.insert(0, g)
    x = None
    for layer, g in enumerate(grads):
        gram, a = grams[layer], inputs[layer][:, None]
        source = a @ (g.mT @ a).mT if gram is None else gram[:, None] @ g
        source.mul_(scale[layer])
        if bias[layer]:
            source.add_(g.sum(2, keepdim=True), alpha=bias[layer])
        if x is not None:
            x.mul_(slopes[layer - 1][:, None])
            source.add_(stacked(x, weights[layer].mT), alpha=sqrt(scale[layer]))
        x = source
    assert x is not None
    return x.reshape(replicas, vectors, v.shape[1]).mT.contiguous()


def _use_torch(v: Tensor, weights: list[Tensor], samples: int) -> bool:
    """Products so large are worth the launches of one GEMM each."""
    columns = v.shape[0] * v.shape[2] * samples
    largest = max(2 * columns * w.shape[1] * w.shape[2] for w in weights)
    return not serves("ntk_matvec", v.device, largest)


def _impl(
    v: Tensor,
    weights: list[Tensor],
    inputs: list[Tensor],
    slopes: list[Tensor],
    scale: list[float],
    bias: list[float],
    grams: list[Tensor | None],
) -> Tensor:
    if _use_torch(v, weights, inputs[0].shape[1]):
        return _by_torch(v, weights, inputs, slopes, scale, bias, grams)
    out = v.new_empty(v.shape)
    size = _native.call(
        "ntk_matvec_workspace",
        v.device,
        inputs[0].shape[1],
        [w.shape[1] for w in weights],
        [w.shape[2] for w in weights],
        [int(gram is not None) for gram in grams],
    )
    workspace = v.new_empty(v.shape[0] * v.shape[2] * size)
    none = v.new_empty(0)
    frozen = [[t.contiguous() for t in part] for part in (weights, inputs, slopes)]
    cached = [none if gram is None else gram.contiguous() for gram in grams]
    _native.call(
        "ntk_matvec", v.device, v.contiguous(), *frozen, cached, scale, bias, workspace, out
    )
    return out


register(
    "ntk_matvec(Tensor v, Tensor[] weights, Tensor[] inputs, Tensor[] slopes, float[] scale, "
    "float[] bias, Tensor?[] grams) -> Tensor",
    _impl,
    _fake,
)
