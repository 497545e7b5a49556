"""Right values by plain autograd on a copy of the model, one row and one product at a time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Widened(TorchFunctionMode):
    """Casts to float32 and new float32 tensors become float64 ones.

    Many networks compute norms, rotations or the softmax in float32 whatever dtype their parameters
    have, so that nothing could be compared to better than 1e-7.
    """

    def __enter__(self) -> Any:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.set_default_dtype(self._default)
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()

        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func not in (torch.Tensor.dtype.__get__,):  # type: ignore[attr-defined]
            args = tuple(wide(a) for a in args)
            kwargs = {k: wide(a) for k, a in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def computes_in_float32(forward: Any) -> bool:
    """True if an operation of ``forward()`` returns float32 numbers."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            seen.extend(
                t for t in tree_leaves(out) if isinstance(t, Tensor) and t.dtype == torch.float32
            )
            return out

    with torch.no_grad(), Watch():
        forward()
    return bool(seen)


def widened(inputs: Any) -> Any:
    """Floating-point inputs in float64."""
    return tree_map(
        lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, inputs
    )


class BruteForce:
    """Jacobian rows (N*O, P) and Hessian products of half mean squared error of one case."""

    def __init__(self, case: Any) -> None:
        self.case = case
        with torch.no_grad():
            self.shape = tuple(self.outputs().shape)
        generator = torch.Generator().manual_seed(2)
        self.y = torch.randn(self.shape, generator=generator, dtype=torch.float64)

    def outputs(self) -> Tensor:
        """Outputs (N, O) with graph of a new copy, fused attention replaced by its formula.

        Some models keep tensors made of parameters, so that a pass without a graph spoils the next.
        """
        self.model = copy.deepcopy(self.case.model)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        with sdpa_kernel(SDPBackend.MATH):
            return self.case.forward(self.model, self.case.inputs)

    def jacobian(self) -> Tensor:
        """J (N*O, P), one backward pass a row."""
        f = self.outputs().reshape(-1)
        rows = []
        for r in range(len(f)):
            grads = torch.autograd.grad(f[r], self.params, retain_graph=True, allow_unused=True)
            rows.append(self._flat(grads))
        return torch.stack(rows)

    def hessian_product(self, v: Tensor) -> Tensor:
        """H v (P,) of (1/2N) sum |f - y|^2, by a backward pass through a backward pass."""
        f = self.outputs()
        loss = (f - self.y).square().sum() / (2 * len(f))
        grads = torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True)
        blocks = v.split([p.numel() for p in self.params])
        pairs = [
            (g.reshape(-1) * b).sum()
            for g, b in zip(grads, blocks, strict=True)
            if g is not None and g.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(v)
        twice = torch.autograd.grad(sum(pairs), self.params, allow_unused=True)
        return self._flat(twice).detach()

    def _flat(self, grads: Any) -> Tensor:
        return torch.cat(
            [
                (p.new_zeros(p.numel()) if g is None else g.reshape(-1)).detach()
                for g, p in zip(grads, self.params, strict=True)
            ]
        )
