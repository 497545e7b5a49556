"""Uses of parameters, read off the graph of a forward pass made of a few known operations.

Their nodes hold what the rules take from the calls, so that no pass has to be watched for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.graphs import nodes_of
from catapult_ext.linops.model.pass_context import frozen_context
from catapult_ext.linops.tracing.independence import (
    is_parametric,
    kind_of,
    samples_are_apart,
    shape_of,
)
from catapult_ext.linops.tracing.parameter_use_kinds import Convolution, Use
from catapult_ext.linops.tracing.parameter_use_rules import ParameterCall

Given = list["Tensor | None"]  # the parameters among a node's arguments, in order
Found = list["Use | None"]


def uses_seen(snapshot: FixedModel, graph: Tensor) -> tuple[Tensor, list[Use]] | None:
    """Outputs of a forward pass and the uses in their graph; None where it may not show all."""
    if not snapshot.observed.plain:
        return None
    try:
        with frozen_context():
            found = uses_in_graph(graph, list(snapshot.params.values()))
    except RuntimeError:  # a saved tensor was changed in place
        return None
    return None if found is None else (graph, found)


def uses_in_graph(graph: Tensor, leaves: Sequence[Tensor]) -> list[Use] | None:
    """The uses of ``leaves`` in the graph of outputs (N, O); None where it shows not all of them.

    It does where samples are read off to be independent, and all that takes a parameter is a
    convolution, a dense layer on (N, d), or a batch or group norm.

    Raises:
        RuntimeError: a tensor that the graph has saved was changed in place.
    """
    if not samples_are_apart(graph):
        return None
    known, found = {id(leaf) for leaf in leaves}, []
    for node in nodes_of([graph.grad_fn]):
        if is_parametric(node):
            continue
        given = [_parameter(below) for below, _ in node.next_functions]
        if all(p is None for p in given):
            continue
        kind = kind_of(node)
        strange = any(p is not None and id(p) not in known for p in given)
        if kind not in _READ or strange or given[_DATA.get(kind, 0)] is not None:
            return None
        call = ParameterCall((), {}, GradientEdge(node, 0), shape_of(node), len(graph))
        found += _READ[kind](node, call, given)
    return None if any(use is None for use in found) else [u for u in found if u is not None]


def _parameter(node: Any) -> Tensor | None:
    """The leaf that a node stands for, or is the transpose of."""
    if node is None or not is_parametric(node):
        return None
    leaf = node if hasattr(node, "variable") else node.next_functions[0][0]
    variable: Tensor = leaf.variable
    return variable


def _convolution(node: Any, call: ParameterCall, given: Given) -> Found:
    _, w, b = given
    if node._saved_transposed:
        return [None]
    found: Found = []
    if w is not None:
        places = (node._saved_stride, node._saved_padding, node._saved_dilation)
        geometry = (*(tuple(place) for place in places), node._saved_groups)
        found.append(Convolution(w, call.edge, call.out, node._saved_input.detach(), *geometry))
    if b is not None:
        found.append(call.broadcast(b, (len(b), *(1,) * (len(call.out) - 2))))
    return found


def _batch_norm(node: Any, call: ParameterCall, given: Given) -> Found:
    fixed = (node._saved_running_mean, node._saved_running_var)

    def unit() -> Tensor:
        return F.batch_norm(node._saved_input.detach(), *fixed, eps=node._saved_eps)

    return _affine(call, given, unit)


def _group_norm(node: Any, call: ParameterCall, given: Given) -> Found:
    def unit() -> Tensor:
        return F.group_norm(node._saved_input.detach(), node._saved_group, eps=node._saved_eps)

    return _affine(call, given, unit)


def _affine(call: ParameterCall, given: Given, unit: Callable[[], Tensor]) -> Found:
    """Scale and shift of the channels of a normalisation."""
    _, w, b = given
    after = (1,) * (len(call.out) - 2)
    found: Found = []
    if w is not None:
        found.append(call.broadcast(w, (*w.shape, *after), unit()))
    if b is not None:
        found.append(call.broadcast(b, (*b.shape, *after)))
    return found


def _addmm(node: Any, call: ParameterCall, given: Given) -> Found:
    b, _, w = given
    if node._saved_alpha != 1 or node._saved_beta != 1:
        return [None]
    found: Found = []
    if w is not None:
        found.append(_product(node, call, w, node._saved_mat1))
    if b is not None:
        found.append(call.broadcast(b))
    return found


def _mm(node: Any, call: ParameterCall, given: Given) -> Found:
    return [_product(node, call, w, node._saved_self) for w in given if w is not None]


def _product(node: Any, call: ParameterCall, w: Tensor, x: Tensor) -> Use:
    """The use of w in x W, where it is no transpose, and else in x W'."""
    return call.outer(w, x, transposed=hasattr(node.next_functions[-1][0], "variable"))


_DATA = {"Addmm": 1}  # where a node has its data, if not first
_READ: dict[str, Callable[[Any, ParameterCall, Given], Found]] = {
    "Convolution": _convolution,
    "NativeBatchNorm": _batch_norm,
    "NativeGroupNorm": _group_norm,
    "Addmm": _addmm,
    "Mm": _mm,
}
