"""Second derivatives of losses by the outputs, H_L, and their factors S S' = H_L."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v

TILE = 1 << 18  # entries of a softmax that are made at a time


class OutputHessian(ABC):
    """H_L, the second derivative of the loss by the outputs."""

    @abstractmethod
    def hessian(self, u: Tensor) -> Tensor:
        """H_L u for u (N, O, K)."""


class AutogradHessian(OutputHessian):
    """Output Hessian H_L of any twice-differentiable loss, by double backward."""

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
        written = isinstance(node, torch.autograd.function.BackwardCFunction)
        if written and not getattr(node._forward_cls, "exact", False):
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


class SoftmaxFactor(OutputFactor):
    """S_n = root_n (diag(sqrt p_n) - p_n sqrt(p_n)'): S_n S_n' = root_n^2 (diag p_n - p_n p_n').

    The probabilities p are made of the logits when they are needed, a tile of rows and classes at a
    time: besides its result a product takes the memory of a few tiles, however many classes
    there are.  S'1 = 0 and 1'S = 0: both are used at the most likely class, so that a row of H that
    is nearly 0, since p is nearly 1 there, keeps its digits.

    Args:
        root: (N, 1).
        logits: (N, O), kept as they are, without a copy.
    """

    def __init__(self, root: Tensor, logits: Tensor) -> None:
        self.root, self.logits = root, logits
        self._log_sums = torch.cat([self._log_sum(rows) for rows in self._rows(1)])
        self._top = logits.argmax(1).view(-1, 1, 1)

    @property
    def p(self) -> Tensor:
        """The probabilities (N, O), all at once."""
        return torch.softmax(self.logits, 1)

    def apply(self, u: Tensor) -> Tensor:
        """S u for u (N, O, K), without forming S_n."""

        def product(p: Tensor, u: Tensor, root: Tensor, inner: Tensor) -> Tensor:
            return (p.sqrt() * u).addcmul_(p, inner, value=-1).mul_(root)

        out = self._mapped(u, lambda p: p.sqrt(), product)
        top = self._top.expand(-1, 1, u.shape[2])
        out.scatter_(1, top, 0.0)
        return out.scatter_(1, top, out.sum(1, keepdim=True).neg_())

    def apply_t(self, u: Tensor) -> Tensor:
        """S' u for u (N, O, K), without forming S_n."""

        def product(p: Tensor, u: Tensor, root: Tensor, inner: Tensor) -> Tensor:
            return (u - inner).mul_(p.sqrt() * root)

        return self._mapped(u, lambda p: p, product, shifted=True)

    def hessian(self, u: Tensor) -> Tensor:
        """H_L u = root^2 (p * u - p <p, u>) for u (N, O, K)."""

        def product(p: Tensor, u: Tensor, root: Tensor, inner: Tensor) -> Tensor:
            return (u - inner).mul_(p * root.square())

        return self._mapped(u, lambda p: p, product, shifted=True)

    def _mapped(
        self,
        u: Tensor,
        weights: Callable[[Tensor], Tensor],
        product: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        shifted: bool = False,
    ) -> Tensor:
        """``product(p, u, root, <weights(p), u>)`` tile by tile, inner products first.

        ``shifted`` takes u less its entry at the most likely class.
        """
        out = torch.empty_like(u)
        for rows in self._rows(u.shape[2]):
            at = self._top[rows].expand(-1, 1, u.shape[2])
            origin = u[rows].gather(1, at) if shifted else None
            inner = u.new_zeros(rows.stop - rows.start, 1, u.shape[2])
            made = None  # p and u of the last tile of classes, which is often the only one
            for classes in self._classes(u.shape[2]):
                p, part = made = self._tile(u, rows, classes, origin)
                inner += (weights(p) * part).sum(1, keepdim=True)
            root = self.root[rows].unsqueeze(-1)
            for classes in reversed(list(self._classes(u.shape[2]))):
                p, part = made or self._tile(u, rows, classes, origin)
                out[rows, classes] = product(p, part, root, inner)
                made = None
        return out

    def _tile(
        self, u: Tensor, rows: slice, classes: slice, origin: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Probabilities and u of a tile, u less ``origin``."""
        part = u[rows, classes]
        return self._p(rows, classes), part if origin is None else part - origin

    def _p(self, rows: slice, classes: slice) -> Tensor:
        """Probabilities of a tile, (n, o, 1)."""
        return (self.logits[rows, classes] - self._log_sums[rows]).exp_().unsqueeze(-1)

    def _log_sum(self, rows: slice) -> Tensor:
        """Log sum exp of the logits of some rows, (n, 1)."""
        parts = [self.logits[rows, c].logsumexp(1, keepdim=True) for c in self._classes(1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1).logsumexp(1, keepdim=True)

    def _rows(self, columns: int) -> Iterator[slice]:
        """Rows of a tile: as many as have ``TILE`` entries with all their columns, or one."""
        n, classes = self.logits.shape
        return _slices(n, max(1, TILE // (classes * columns)))

    def _classes(self, columns: int) -> Iterator[slice]:
        """Classes of a tile: all of them, where that is no more entries."""
        return _slices(self.logits.shape[1], max(1, TILE // columns))


def _slices(count: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` indices that cover ``count`` of them."""
    return (slice(at, min(at + step, count)) for at in range(0, count, step))


@dataclass(frozen=True, eq=False)
class RankOneFactor(OutputFactor):
    """Factor S_n = s_n e_1', so that S_n S_n' = s_n s_n'."""

    slope: Tensor  # (N, O)

    def apply(self, u: Tensor) -> Tensor:
        """S u: the slope times the first entry of each sample, for u (N, O, K)."""
        return self.slope.unsqueeze(-1) * u[:, :1]

    def apply_t(self, u: Tensor) -> Tensor:
        """S' u: the inner product with the slope in the first entry, else 0."""
        out = torch.zeros_like(u)
        out[:, 0] = (self.slope.unsqueeze(-1) * u).sum(1)
        return out
