"""How uses of parameters turn gradients by their results into per-sample Jacobian rows.

A use is one call that mixes a parameter with data: z = use(parameter, data).  From g, the
derivatives (n, O, ...) of every output by z, follow the rows of the Jacobian by the parameter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

_HUGE = 4 << 20  # bytes from which NumPy asks the system for huge pages


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised tensor; on the CPU in huge pages, which cost a sixth of small ones."""
    count = prod(shape)
    if like.device.type != "cpu" or count * like.element_size() < _HUGE:
        return like.new_empty(shape, requires_grad=False)
    kind = numpy.float32 if like.dtype == torch.float32 else numpy.float64
    return torch.from_numpy(numpy.empty(count, kind)).view(shape)


class Memory:
    """Memory that blocks of rows are written to one after another.

    The system clears every page of a new large block, which takes as long as a thin product.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Numbers to be written, whose memory the next call of this name gives out again."""
        count, held = prod(shape), self._held.get(name)
        if held is None or held.numel() < count:
            held = None
            self._held.pop(name, None)
            self._held[name] = held = empty((count,), like)
        return held[:count].view(shape)


def by_sample(t: Tensor, n: int, second: bool) -> Tensor:
    """(N, ...) as it is; (S, N, ...) or (S*N, ...) turned, where samples are second."""
    return t.reshape(-1, n, *t.shape[2 if t.dim() > 2 else 1 :]).transpose(0, 1) if second else t


@dataclass(eq=False)
class Use(ABC):
    """One use of ``target``; ``edge`` is where the graph meets its result, of shape ``out``."""

    target: Tensor
    edge: GradientEdge
    out: tuple[int, ...]  # (N, ...)

    second = False  # whether samples are the second dimension of the result, steps the first

    def by_sample(self, g: Tensor) -> Tensor:
        """A gradient by the result as (N, ...)."""
        return by_sample(g, self.out[0], self.second).reshape(self.out)

    @property
    def leads(self) -> int:
        """Length of the first dimension of the target."""
        return self.target.shape[0] if self.target.dim() else 1

    @abstractmethod
    def rows(self, g: Tensor, samples: slice, lead: slice, memory: Memory | None = None) -> Tensor:
        """Rows (n, O, q) by the entries ``lead`` of the first dimension of the target.

        ``g`` (n, O, *out[1:]) belongs to ``samples``.  They may lie in ``memory``.
        """

    by_output = True  # :meth:`add_rows` for every output costs no more than :meth:`rows` for all

    def add_rows(self, g: Tensor, out: Tensor, first: bool) -> None:
        """Write the rows of one output by the whole target to ``out`` (N, q), or add them there.

        ``g`` (N, *out[1:]) is the derivative of that output; ``first`` says to write.
        """
        rows = self.rows(g.unsqueeze(1), slice(0, len(g)), slice(0, self.leads))[:, 0]
        if first:
            out.copy_(rows)
        else:
            out.add_(rows)

    def total(self, g: Tensor) -> Tensor:
        """The sum over all samples of the rows of one output, in the shape of the target."""
        total = torch.zeros_like(self.target.detach())
        step = max(1, (1 << 24) // max(1, total.numel() + self.scratch()))
        for at in range(0, len(g), step):
            some = slice(at, min(at + step, len(g)))
            rows = self.rows(g[some].unsqueeze(1), some, slice(0, self.leads))
            total += rows.sum((0, 1)).view_as(total)
        return total

    def scratch(self) -> int:
        """Scratch values per sample that :meth:`rows` allocates, besides g and its result."""
        return 0

    def saved(self) -> list[Tensor]:
        """Tensors that must not have changed since."""
        return []

    def absolute(self) -> Use:
        """This use with absolute values of its data, for bounds on rounding."""
        return self


class Positions(Use):
    """A use whose derivative is a sum over positions of outer products."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """S."""

    @abstractmethod
    def flops(self) -> float:
        """Size of the rows of one sample and output."""

    @abstractmethod
    def inner(self, other: Any, mine: slice) -> Tensor:
        """Inner products of the data factors of samples ``mine`` and all of ``other``'s.

        (n, S, N2, S2).
        """


@dataclass(eq=False)
class Outer(Positions):
    """dz_s = dW x_s at positions s: J = sum over s of g_s x_s'; or x_s g_s' if ``transposed``."""

    x: Tensor  # (N, S, d)
    transposed: bool = False

    def rows(self, g: Tensor, samples: slice, lead: slice, memory: Memory | None = None) -> Tensor:
        """Rows of J (n, O, q): the products of g and x, summed over positions."""
        n, o = g.shape[:2]
        x = self.x[samples]
        g = g.reshape(n, o, x.shape[1], -1)
        if self.transposed:
            rows = torch.einsum("nsd,nosp->nodp", x[..., lead], g)
        else:
            left = g[..., lead].transpose(2, 3).reshape(n, -1, x.shape[1])
            rows = left @ x
        return rows.reshape(n, o, -1)

    def add_rows(self, g: Tensor, out: Tensor, first: bool) -> None:
        """Write or add the sum of g_s x_s' over s (N, p * d) to ``out``, without copying ``g``."""
        g = g.reshape(len(g), self.positions, -1)
        pair = (self.x.mT, g) if self.transposed else (g.mT, self.x)
        place = out.view(len(g), *self.target.shape)
        if first:
            torch.bmm(*pair, out=place)
        else:
            place.baddbmm_(*pair)

    def total(self, g: Tensor) -> Tensor:
        """The sum of the rows of all samples, as one product over samples and positions."""
        x = self.x.reshape(-1, self.x.shape[2])
        g = g.reshape(len(x), -1)
        return x.T @ g if self.transposed else g.T @ x

    def saved(self) -> list[Tensor]:
        """The data x."""
        return [self.x]

    def absolute(self) -> Use:
        """This use with |x| for x."""
        return replace(self, x=self.x.abs())

    @property
    def positions(self) -> int:
        """S, positions of one sample."""
        return self.x.shape[1]

    def flops(self) -> float:
        """Flops of the rows of one sample and output."""
        return 2.0 * self.x.shape[1] * self.target.numel()

    def inner(self, other: Outer, mine: slice) -> Tensor:
        """x_s . x2_s2 of every pair of samples and positions, (n, S, N2, S2)."""
        x, x2 = self.x[mine], other.x
        return (x.reshape(-1, x.shape[2]) @ x2.reshape(-1, x2.shape[2]).T).view(
            *x.shape[:2], *x2.shape[:2]
        )


@dataclass(eq=False)
class Lookup(Positions):
    """z_s = W[i_s]: row i_s of J gets g_s; index -1 takes no part."""

    index: Tensor  # (N, S)

    def rows(self, g: Tensor, samples: slice, lead: slice, memory: Memory | None = None) -> Tensor:
        """Rows of J (n, O, q): each g_s is added to the row that its index names."""
        n, o = g.shape[:2]
        g = g.reshape(n, o, self.index.shape[1], -1)
        size = lead.stop - lead.start
        index = self.index[samples] - lead.start
        index = torch.where((index < 0) | (index >= size), size, index)
        rows = g.new_zeros(n, o, size + 1, g.shape[3])
        rows.scatter_add_(2, index[:, None, :, None].expand_as(g), g)
        return rows[:, :, :size].reshape(n, o, -1)

    @property
    def positions(self) -> int:
        """S, indices of one sample."""
        return self.index.shape[1]

    def flops(self) -> float:
        """Flops of the rows of one sample and output: they are cleared and filled."""
        return float(self.target.numel())

    def inner(self, other: Lookup, mine: slice) -> Tensor:
        """1 where two indices are the same and not -1, (n, S, N2, S2)."""
        i, j = self.index[mine], other.index
        same = (i[:, :, None, None] == j) & (i >= 0)[:, :, None, None]
        return same.to(self.target.dtype)


@dataclass(eq=False)
class Convolution(Use):
    """Sum over positions of outer products with patches of x, group by group."""

    x: Tensor  # (N, C, spatial...)
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    _kept: Tensor | None = None  # patches of all samples

    @property
    def by_output(self) -> bool:  # type: ignore[override]
        """Whether patches do not overlap: then they are kept for all outputs, as large as x."""
        return self.groups == 1 and prod(self.target.shape[2:]) <= prod(self.stride)

    def add_rows(self, g: Tensor, out: Tensor, first: bool) -> None:
        """Write or add the rows of one output (N, q), from patches made once."""
        if self._kept is None:
            self._kept = self.patches(slice(0, len(g)))[:, 0].mT.contiguous()
        g, place = g.flatten(2), out.view(len(g), len(self.target), -1)
        if first:
            torch.bmm(g, self._kept, out=place)
        else:
            place.baddbmm_(g, self._kept)

    def patches(self, samples: slice, memory: Memory | None = None) -> Tensor:
        """(n, groups, values of a patch, positions)."""
        x = self.x[samples]
        pads = [p for size in reversed(self.padding) for p in (size, size)]
        x = (F.pad(x, pads) if any(pads) else x).contiguous()
        kernel, out = self.target.shape[2:], self.out[2:]
        steps = x.stride()[2:]
        shape = (*x.shape[:2], *kernel, *out)
        strides = [
            *x.stride()[:2],
            *(d * s for d, s in zip(self.dilation, steps, strict=True)),
            *(d * s for d, s in zip(self.stride, steps, strict=True)),
        ]
        windows = x.as_strided(shape, strides)
        if memory is not None:
            windows = memory.empty("patches", shape, x).copy_(windows)
        return windows.reshape(len(x), self.groups, -1, prod(out))

    def rows(self, g: Tensor, samples: slice, lead: slice, memory: Memory | None = None) -> Tensor:
        """Rows of J (n, O, q): the products of g and the patches, group by group."""
        n, o = g.shape[:2]
        patches = self.patches(samples, memory)
        if self.groups == 1:
            left = g[:, :, lead].reshape(n, -1, patches.shape[3])
            right = patches[:, 0].mT
            if memory is None:
                return (left @ right).reshape(n, o, -1)
            rows = memory.empty("rows", (n, left.shape[1], right.shape[2]), left)
            return torch.bmm(left, right, out=rows).view(n, o, -1)
        left = g.reshape(n, o, self.groups, -1, patches.shape[3]).transpose(1, 2)
        rows = left.reshape(n, self.groups, -1, patches.shape[3]) @ patches.mT
        rows = rows.view(n, self.groups, o, -1, patches.shape[2]).transpose(1, 2)
        return rows.reshape(n, o, len(self.target), -1)[:, :, lead].reshape(n, o, -1)

    def scratch(self) -> int:
        """Values of the patches of one sample, and of the padded input."""
        taps = prod(self.target.shape[1:]) * self.groups
        return taps * prod(self.out[2:]) + 2 * self.x[0].numel()

    def saved(self) -> list[Tensor]:
        """The input x."""
        return [self.x]

    def absolute(self) -> Use:
        """This use with |x| for x."""
        return replace(self, x=self.x.abs())


@dataclass(eq=False)
class Broadcast(Use):
    """Dz = dw * other, w broadcast from ``shape`` (as many dimensions as z; first one 1)."""

    shape: tuple[int, ...]
    other: Tensor | None = None  # (N, ...), or without the sample dimension; None: ones

    def rows(self, g: Tensor, samples: slice, lead: slice, memory: Memory | None = None) -> Tensor:
        """Rows of J (n, O, q): g times the other factor, summed over what was broadcast."""
        n, o = g.shape[:2]
        if self.other is not None:
            other = self.other if self.other.shape[0] == 1 else self.other[samples]
            g = g * other.unsqueeze(1)
        flat = [i + 1 for i, size in enumerate(self.shape) if i and size == 1]
        g = g.sum(flat) if flat else g
        return g.reshape(n, o, self.leads, -1)[:, :, lead].reshape(n, o, -1)

    def add_rows(self, g: Tensor, out: Tensor, first: bool) -> None:
        """Write or add g times the data factor, summed where the parameter was broadcast."""
        g = g if self.other is None else g * self.other
        flat = [i for i, size in enumerate(self.shape) if i and size == 1]
        place = out.view(len(g), *(size for size in self.shape[1:] if size != 1))
        if first and flat:
            torch.sum(g, flat, out=place)
        elif first:
            place.copy_(g)
        else:
            place.add_(g.sum(flat) if flat else g)

    def scratch(self) -> int:
        """Values of g times the other factor, for one sample."""
        return 0 if self.other is None else prod(self.out[1:])

    def saved(self) -> list[Tensor]:
        """The other factor, if there is one."""
        return [] if self.other is None else [self.other]

    def absolute(self) -> Use:
        """The same use with the other factor replaced by its absolute value."""
        return self if self.other is None else replace(self, other=self.other.abs())
