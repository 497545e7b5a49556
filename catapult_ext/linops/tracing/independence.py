"""Independence of samples, read off the graph of a forward pass made of a few known operations."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor

from catapult_ext.linops.model.graphs import nodes_of

_ELEMENTWISE = (
    *("Abs", "Add", "Clone", "Div", "Elu", "Exp", "Gelu", "Hardsigmoid", "Hardswish", "Hardtanh"),
    *("LeakyRelu", "Mish", "Mul", "Neg", "Relu", "Sigmoid", "Silu", "Softplus", "Sub", "Tanh"),
    "Threshold",
)
_POOLS = ("AdaptiveAvgPool2D", "AvgPool2D", "MaxPool2DWithIndices")
_LAYERS = ("Convolution", "NativeBatchNorm", "NativeGroupNorm", "NativeLayerNorm")
_BY_FIRST = (*_LAYERS, *_POOLS)  # the first argument alone has samples
_VIEWS = ("UnsafeView", "View")


def samples_are_apart(graph: Tensor) -> bool:
    """Whether no sample can reach another one, whatever the values of inputs and parameters are.

    True only for graphs of convolutions, dense layers, normalisations at fixed statistics, pooling,
    element-wise operations, means over other dimensions and views, all of whose results have the
    samples as first dimension.  False says nothing.
    """
    n = len(graph)
    nodes = nodes_of([graph.grad_fn])
    parametric = {node for node in nodes if is_parametric(node)}
    return all(node in parametric or _is_apart(node, n, parametric) for node in nodes)


def kind_of(node: Any) -> str:
    """Name of the operation whose backward a node is."""
    return str(node.name()).removesuffix("0").removesuffix("1").removesuffix("Backward")


def is_parametric(node: Any) -> bool:
    """A leaf, or the transpose of one."""
    if kind_of(node) == "T":
        node = node.next_functions[0][0]
    return hasattr(node, "variable")


def shape_of(node: Any) -> tuple[int, ...]:
    """Shape of the result of a node."""
    return tuple(node._input_metadata[0].shape)


def _is_apart(node: Any, n: int, parametric: set[Any]) -> bool:
    kind, shape = kind_of(node), shape_of(node)
    if not shape or shape[0] != n:
        return False
    data = [
        (i, below)
        for i, (below, _) in enumerate(node.next_functions)
        if below is not None and below not in parametric
    ]
    places = [i for i, _ in data]
    if kind in _ELEMENTWISE:  # of another number of dimensions, samples would be broadcast
        return all(len(shape_of(below)) == len(shape) for _, below in data)
    if kind in _BY_FIRST:
        return set(places) <= {0} and _REQUIRES.get(kind, _anything)(node, shape)
    if kind in ("Addmm", "Mm"):
        return set(places) <= {1 if kind == "Addmm" else 0}
    if kind in _VIEWS:
        return _whole_samples(node, shape)
    return kind == "Mean" and _keeps_first(node)


def _anything(node: Any, shape: tuple[int, ...]) -> bool:
    return True


def _fixed_statistics(node: Any, shape: tuple[int, ...]) -> bool:
    return not node._saved_training


def _within_samples(node: Any, shape: tuple[int, ...]) -> bool:
    return len(node._saved_normalized_shape) < len(shape)


def _groups_of_samples(node: Any, shape: tuple[int, ...]) -> bool:
    return bool(node._saved_N == shape[0])


_REQUIRES: dict[str, Callable[[Any, tuple[int, ...]], bool]] = {
    "NativeBatchNorm": _fixed_statistics,
    "NativeLayerNorm": _within_samples,
    "NativeGroupNorm": _groups_of_samples,
}


def _whole_samples(node: Any, shape: tuple[int, ...]) -> bool:
    """A view whose rows are those of its argument."""
    before = tuple(node._saved_self_sym_sizes)
    return bool(before) and before[0] == shape[0] and prod(before) == prod(shape)


def _keeps_first(node: Any) -> bool:
    """A mean over named dimensions that are not the first one."""
    dims = getattr(node, "_saved_dim", ())  # unsigned 64-bit numbers
    rank = len(node._saved_self_sym_sizes)
    return bool(dims) and all((d - (1 << 64) * (d >> 63)) % rank != 0 for d in dims)
