"""Graphs of autograd: the leaves and functions they reach, and whether they differentiate again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reached:
    """Everything that a graph leads to.

    Attributes:
        leaves: tensors that require grad.
        functions: names of the autograd Functions written in Python.
    """

    leaves: list[Tensor]
    functions: list[str]


def reached(outputs: Tensor, *stops: Tensor) -> Reached:
    """Leaves and Python functions in the graph of ``outputs``, not beyond ``stops``."""
    leaves: list[Tensor] = []
    functions: list[str] = []
    if outputs.grad_fn is None:
        return Reached([outputs] if outputs.requires_grad else [], [])
    seen = {stop.grad_fn for stop in stops}
    stack: list[Any] = [outputs.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        elif isinstance(node, torch.autograd.function.BackwardCFunction):
            functions.append(type(node).__name__.removesuffix("Backward"))
        stack.extend(n for n, _ in node.next_functions if n is not None)
    return Reached(leaves, functions)


def nodes_of(roots: Sequence[Any]) -> list[Any]:
    """All nodes of the graphs that end in ``roots``."""
    seen: dict[Any, None] = {}
    stack = [r for r in roots if r is not None]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen[node] = None
            stack.extend(n for n, _ in node.next_functions if n is not None)
    return list(seen)


def listed(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def require_second_derivatives(grads: list[Tensor], where: str) -> None:
    """Refuse gradient graphs that pass a backward marked ``once_differentiable``.

    torch marks its result with a node that raises, but off the path to the parameters, so that a
    second backward towards them would leave the term out silently.
    """
    seen: set[Any] = set()
    stack: list[Any] = [g.grad_fn for g in grads if g.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise RuntimeError(
                f"catapult_ext.{where}: an operation of the model has no second derivative: its "
                "backward is marked once_differentiable"
            )
        stack.extend(n for n, _ in node.next_functions if n is not None)
