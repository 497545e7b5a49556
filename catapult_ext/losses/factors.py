"""Second derivatives of losses by the outputs, H_L, and their factors S S' = H_L."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v


class OutputHessian(ABC):
    """H_L, the second derivative of the loss by the outputs."""

    @abstractmethod
    def hessian(self, u: Tensor) -> Tensor:
        """H_L u for u (N, O, K)."""


class AutogradHessian(OutputHessian):
    """H_L of any twice-differentiable function of the outputs, by double backward."""

    def __init__(self, fn: Callable[[Tensor], Tensor], f: Tensor, name: str) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            self._f = f.detach().clone().requires_grad_()
            value = fn(self._f)
            depends = value.requires_grad
            v.require(
                depends, f"losses.{name}", "the loss must depend on the outputs", "a constant"
            )
            (self._gradient,) = torch.autograd.grad(value, self._f, create_graph=True)
            names = _own_functions(value)
        if names:
            self._check(fn, name, names)

    def _check(self, fn: Callable[[Tensor], Tensor], name: str, functions: list[str]) -> None:
        """Compare with central differences of the slope: autograd Functions may lose second ones.

        Raises:
            ValueError: another second derivative; names the functions.
        """
        f, eps = self._f.detach(), torch.finfo(self._f.dtype).eps
        draw = torch.Generator().manual_seed(0)
        d = torch.randn(f.shape, generator=draw, dtype=torch.float64, device="cpu").to(f)
        d = d * f.square().mean().sqrt().clamp_min(1e-2)

        def slope(at: Tensor) -> Tensor:
            at = at.clone().requires_grad_()
            with torch.inference_mode(False), torch.enable_grad():
                return torch.autograd.grad(fn(at), at)[0]

        steps = eps ** (1 / 3), eps ** (1 / 3) / 2
        coarse, fine = ((slope(f + h * d) - slope(f - h * d)) / (2 * h) for h in steps)
        found = self.hessian(d.reshape(len(f), -1, 1)).reshape(f.shape)
        size = max(float(found.norm()), float(fine.norm()))
        gap, spread = float((found - fine).norm()), 2 * float((fine - coarse).norm())
        v.require(
            gap <= max(1e-6, 10 * eps**0.5) * size + spread,
            f"losses.{name}",
            f"the second derivative of the loss must be that of its slope, through {functions[0]} "
            "as well (write its backward with torch operations of what forward was given, keeping "
            "no derivative in ctx)",
            f"a difference of {gap / size:.1e} from central differences" if size else "zero",
        )

    def hessian(self, u: Tensor) -> Tensor:
        """H_L u for u (N, O, K), by one backward pass per column."""
        if not self._gradient.requires_grad:  # linear in the outputs
            return torch.zeros_like(u)
        columns = [
            torch.autograd.grad(
                self._gradient, self._f, u[..., k].reshape(self._f.shape), retain_graph=True
            )[0].reshape(u.shape[:2])
            for k in range(u.shape[2])
        ]
        return torch.stack(columns, 2)


def _own_functions(value: Tensor) -> list[str]:
    """Autograd Functions written in Python in the graph of a loss."""
    names: dict[str, None] = {}
    seen: set[Any] = set()
    stack: list[Any] = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            names[f"autograd Function {type(node).__name__.removesuffix('Backward')}"] = None
        stack.extend(n for n, _ in node.next_functions)
    return list(names)


class OutputFactor(OutputHessian):
    """S with S S' = H_L, block diagonal over samples: both products map (N, O, K) to (N, O, K)."""

    @abstractmethod
    def apply(self, u: Tensor) -> Tensor:
        """S u for u (N, O, K)."""

    @abstractmethod
    def apply_t(self, u: Tensor) -> Tensor:
        """S' u for u (N, O, K)."""

    def hessian(self, u: Tensor) -> Tensor:
        """H_L u = S S' u for u (N, O, K)."""
        return self.apply(self.apply_t(u))


@dataclass(frozen=True, eq=False)
class DiagonalFactor(OutputFactor):
    """S = diag(root), root (N, O) or any shape that broadcasts to it."""

    root: Tensor

    def apply(self, u: Tensor) -> Tensor:
        """S u = root * u for u (N, O, K)."""
        return u * self.root.unsqueeze(-1)

    def apply_t(self, u: Tensor) -> Tensor:
        """S' u for u (N, O, K); S is symmetric."""
        return self.apply(u)

    def hessian(self, u: Tensor) -> Tensor:
        """H_L u = root^2 * u for u (N, O, K)."""
        return u * self.root.square().unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class SoftmaxFactor(OutputFactor):
    """S_n = root_n (diag(sqrt p_n) - p_n sqrt(p_n)'): S_n S_n' = root_n^2 (diag p_n - p_n p_n')."""

    root: Tensor  # (N, 1)
    p: Tensor  # (N, O), rows sum to one

    def apply(self, u: Tensor) -> Tensor:
        """S u for u (N, O, K), without forming S_n."""
        s = self.p.sqrt().unsqueeze(-1)
        inner = (s * u).sum(1, keepdim=True)
        return self.root.unsqueeze(-1) * (s * u - self.p.unsqueeze(-1) * inner)

    def apply_t(self, u: Tensor) -> Tensor:
        """S' u for u (N, O, K), without forming S_n."""
        s = self.p.sqrt().unsqueeze(-1)
        inner = (self.p.unsqueeze(-1) * u).sum(1, keepdim=True)
        return self.root.unsqueeze(-1) * (s * u - s * inner)


@dataclass(frozen=True, eq=False)
class RankOneFactor(OutputFactor):
    """S_n = s_n e_1', so that S_n S_n' = s_n s_n'."""

    slope: Tensor  # (N, O)

    def apply(self, u: Tensor) -> Tensor:
        """S u: the slope times the first entry of each sample, for u (N, O, K)."""
        return self.slope.unsqueeze(-1) * u[:, :1]

    def apply_t(self, u: Tensor) -> Tensor:
        """S' u: the inner product with the slope in the first entry, else 0."""
        out = torch.zeros_like(u)
        out[:, 0] = (self.slope.unsqueeze(-1) * u).sum(1)
        return out
