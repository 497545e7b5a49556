"""One recorded operation, and its tangents by torch's own formulas.

A rule is made when the operation is recorded, and keeps what it needs of the values then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from catapult_ext.linops.model.policy import SHARED_STATE

aten: Any = torch.ops.aten
Rule = Callable[[list[Tensor | None]], Any]  # tangents of tensor arguments to those of results
Made = tuple[Rule, list[Tensor]]  # a rule, and the tensors whose values it keeps


@dataclass(eq=False, slots=True)
class TensorCall:
    """One operation as it ran.

    Attributes:
        tensors: the tensor arguments in order.
        active: which of them depend on a leaf.
        places: where they stand among ``args``; None where one lies deeper.
    """

    func: Any
    args: Any
    kwargs: Any
    out: Any
    tensors: list[Tensor]
    active: list[bool]
    places: list[int] | None = None

    def forget(self) -> None:
        """Let go of the result, and of arguments that :meth:`again` replaces.

        Rules keep the values that they need: what a rule does not need is not to stay in memory.
        """
        self.out = None
        if self.places is not None:
            args = list(self.args)
            for place in self.places:
                args[place] = None
            self.args, self.tensors = args, []

    def again(self, values: Sequence[Any]) -> Any:
        """The operation on other tensors."""
        if self.places is not None:
            given = list(self.args)
            for place, value in zip(self.places, values, strict=True):
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


def linear_operation(call: TensorCall) -> Made:
    """An operation that is linear in its only tensor."""

    def rule(tangents: list[Tensor | None]) -> Any:
        return call.again(tangents)

    return (rule, []) if len(call.tensors) == 1 else by_formula(call)
