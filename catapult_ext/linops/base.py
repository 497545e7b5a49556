"""The operator base class: shape, dtype, device, ``@``; transposes, sums and multiples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._free_memory import free_bytes, show_bytes
from catapult_ext._progress import Progress, counted

if TYPE_CHECKING:
    from typing_extensions import Self

_DENSE_CHUNK = 64
_SMALL = 256 << 20  # bytes of a matrix that nobody asks the memory for


@dataclass(frozen=True, eq=False)
class Dual:
    """A smaller operator with the same non-zero spectrum.

    ``lift`` maps its vectors (m, K) to the large space so that an eigenvector u with eigenvalue
    l > 0 becomes ``lift(u) / sqrt(l)``, a unit eigenvector there; ``restrict`` is its transpose.

    Examples:
        >>> G = cx.GGN(nn.Linear(3, 1), "mse", (torch.randn(2, 3), torch.randn(2, 1)))
        >>> dual = G.dual()
        >>> G.shape, dual.operator.shape
        ((4, 4), (2, 2))
    """

    operator: LinearOperator
    lift: Callable[[Tensor], Tensor]
    restrict: Callable[[Tensor], Tensor]


def _is_factor(value: object) -> bool:
    """A number, or a tensor that holds one, as an eigenvalue."""
    return v.is_number(value) or (isinstance(value, Tensor) and value.dim() == 0)


class LinearOperator(ABC):
    """A linear operator known by its products; symmetric unless ``symmetric`` says otherwise.

    Subclasses give ``_matmat``: (n, K) -> (m, K), those that are not symmetric ``_rmatmat``,
    (m, K) -> (n, K), as well.  ``@`` takes (n,) or (n, K) tensors of the operator's dtype on its
    device; results carry no autograd graph.  ``2 * A + B``, ``A - B``, ``A / 3`` and
    ``A.shift(alpha)`` are operators again.

    Examples:
        >>> A = cx.NTK(nn.Linear(3, 2), torch.randn(4, 3))
        >>> B = 2 * A  # operators are scaled and added without being written out
        >>> v = torch.ones(8)
        >>> torch.allclose(B @ v, 2 * (A @ v))
        True
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    name: str = "LinearOperator"
    symmetric: bool = True
    columns: int = _DENSE_CHUNK  # right-hand sides multiplied at once
    __array_ufunc__ = None  # numbers of NumPy leave sums and multiples to the operator

    @classmethod
    def _of(cls, *parts: Any) -> Self:
        """An operator of parts that are made and checked already: the one way past the constructor.

        Subclasses that offer it have ``_set_up(*parts)``, which their constructors call as well.
        """
        self = cls.__new__(cls)
        self._set_up(*parts)
        return self

    def _set_up(self, *parts: Any) -> None:
        raise NotImplementedError(f"catapult_ext.{self.name}: is made by its constructor alone")

    @property
    def parameter_names(self) -> tuple[str, ...] | None:
        """Names of the parameters that the operator acts on, in order; None where unknown."""
        return None

    @property
    def parameter_shapes(self) -> tuple[torch.Size, ...] | None:
        """Their shapes; a complex parameter has a last dimension of its two parts."""
        return None

    def by_name(self, vectors: Tensor) -> dict[str, Tensor]:
        """Vectors over the parameters, such as eigenvectors, split into tensors of their shapes.

        Args:
            vectors: (P,), or (P, K) of K columns.

        Returns:
            For every parameter a view of its shape, with a leading dimension K for columns.

        Raises:
            ValueError: the operator does not act on parameters, or ``vectors`` has another size.
        """
        names, shapes, where = self.parameter_names, self.parameter_shapes, f"{self.name}.by_name"
        sizes = [shape.numel() for shape in shapes or ()]
        acts = names is not None and sum(sizes) == self.shape[1]
        wanted = "the operator must act on parameters, as GGN and Hessian do"
        v.require(acts, where, wanted, f"one of shape {tuple(self.shape)}")
        ok = vectors.dim() in (1, 2) and len(vectors) == self.shape[1]
        wanted = f"vectors must be ({self.shape[1]},) or ({self.shape[1]}, K)"
        v.require(ok, where, wanted, tuple(vectors.shape))
        assert names is not None
        assert shapes is not None
        parts = vectors.movedim(0, -1).split(sizes, -1)
        lead = vectors.shape[1:]
        named = zip(names, shapes, parts, strict=True)
        return {name: part.reshape(*lead, *shape) for name, shape, part in named}

    @property
    def rounding_unit(self) -> float:
        """Roundoff of the least precise numbers in a product: of ``dtype`` or a coarser one."""
        return torch.finfo(self.dtype).eps

    @property
    def budget(self) -> int | None:
        """Bytes of ``memory_budget``; None where none was given."""
        return None

    def solver_room(self, columns: int) -> int | None:
        """Bytes of the budget that a product of ``columns`` leaves; None without a budget."""
        return None

    @property
    def skew_is_rounding(self) -> bool:
        """Whether the operator is known to be symmetric, so that a skew is rounding of products."""
        return False

    @property
    def lower_bound(self) -> float | None:
        """A number that no eigenvalue is below: 0 of an NTK; None where none is known."""
        return None

    @abstractmethod
    def _matmat(self, vectors: Tensor) -> Tensor:
        """The product with (n, K), already checked."""

    def _rmatmat(self, vectors: Tensor) -> Tensor:
        """The product of the transpose with (m, K), already checked."""
        if not self.symmetric:
            raise NotImplementedError(f"catapult_ext.{self.name}: has no transposed product")
        return self._matmat(vectors)

    def half_product(self, vectors: Tensor) -> Tensor | None:
        """B V for (n, K) where A = B'B and B costs about half of A; None where there is no such B.

        v'Av = |Bv|^2: what only needs such forms, as the trace by random vectors, takes this.
        """
        return None

    @property
    def T(self) -> LinearOperator:
        """The transpose; a symmetric operator is its own."""
        return self if self.symmetric else Transposed(self)

    def shift(self, alpha: float) -> LinearOperator:
        """A + alpha I."""
        return self + Identity(self) * alpha

    def __mul__(self, factor: float) -> LinearOperator:
        return combine([(float(factor), self)]) if _is_factor(factor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> LinearOperator:
        return self * (1 / float(divisor)) if _is_factor(divisor) else NotImplemented

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def __add__(self, other: LinearOperator) -> LinearOperator:
        known = isinstance(other, LinearOperator)
        return combine([(1.0, self), (1.0, other)]) if known else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + -1.0 * other if isinstance(other, LinearOperator) else NotImplemented

    @no_autocast()
    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with (n,) or (n, K)."""
        where, n = f"{self.name} @", self.shape[1]
        if not isinstance(vectors, Tensor):
            v.fail(
                where,
                "the right-hand side must be a torch.Tensor",
                type(vectors).__name__,
                TypeError,
            )
        fits = vectors.dim() in (1, 2) and vectors.shape[0] == n
        v.require(
            fits, where, f"the right-hand side must be ({n},) or ({n}, K)", tuple(vectors.shape)
        )
        if vectors.dtype != self.dtype:
            v.fail(where, f"the right-hand side must be {self.dtype}", vectors.dtype, TypeError)
        on_device = vectors.device == self.device
        v.require(on_device, where, f"the right-hand side must be on {self.device}", vectors.device)
        columns = vectors.detach().reshape(n, -1)
        if columns.shape[1] == 0:
            return columns.new_zeros(self.shape[0], 0)
        out = self._product(columns)
        return out.reshape(-1) if vectors.dim() == 1 else out

    def _product(self, vectors: Tensor) -> Tensor:
        """The product with (n, K), ``columns`` at a time."""
        if vectors.shape[1] <= self.columns:
            return self._at_once(vectors)
        out = vectors.new_empty(self.shape[0], vectors.shape[1])
        for start in range(0, vectors.shape[1], self.columns):
            some = slice(start, start + self.columns)
            out[:, some] = self._at_once(vectors[:, some])
        return out

    def _at_once(self, vectors: Tensor) -> Tensor:
        """The product with at most ``columns`` vectors, as one CUDA graph where that is asked."""
        return self._matmat(vectors)

    @no_autocast()
    def dense(self, *, progress: Progress = None) -> Tensor:
        """The matrix itself, by products with the identity: n products, n*n entries.

        Args:
            progress: True for a bar, or a function of (columns done, columns); see
                :mod:`catapult_ext._progress`.

        Raises:
            ValueError: a matrix larger than the memory budget, or than the free memory.
        """
        n, where = self.shape[1], f"{self.name}.dense"
        self._check_room(where)
        out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        with counted(progress, where, n, "columns") as counter:
            for start in range(0, n, self.columns):
                stop = min(start + self.columns, n)
                out[:, start:stop] = self._matmat(self._unit_columns(start, stop))
                counter.at(stop)
        return out

    def _check_room(self, where: str) -> None:
        """Raise ValueError where the matrix is larger than the budget, or than what is free."""
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        if size <= _SMALL and self.budget is None:
            return  # without asking the system for what is free
        room = free_bytes(self.device) if self.budget is None else self.budget
        kind = "free memory" if self.budget is None else "memory budget"
        needs = (
            f"the matrix {tuple(self.shape)}, {show_bytes(size)}, must fit the {kind}; eigsh, "
            "hutchinson_trace, spectral_density and products need no matrix"
        )
        v.require(size <= room, where, needs, show_bytes(room))

    @no_autocast()
    def diagonal(self) -> Tensor:
        """The diagonal (n,), exact: n products, chunked."""
        n = self.shape[1]
        v.require(
            n == self.shape[0], f"{self.name}.diagonal", "the operator must be square", self.shape
        )
        out = torch.empty(n, dtype=self.dtype, device=self.device)
        for start in range(0, n, self.columns):
            stop = min(start + self.columns, n)
            columns = self._matmat(self._unit_columns(start, stop))
            out[start:stop] = columns[start:stop].diagonal()
        return out

    def trace(self) -> Tensor:
        """Sum of the diagonal, a scalar tensor accumulated in float64 and returned in dtype."""
        return self.diagonal().double().sum().to(self.dtype)

    def dual(self) -> Dual | None:
        """A smaller operator with the same non-zero spectrum, or None where there is none."""
        return None

    def to_scipy(self) -> Any:
        """This operator as ``scipy.sparse.linalg.LinearOperator`` on NumPy arrays (needs scipy)."""
        try:
            from scipy.sparse.linalg import LinearOperator as ScipyOperator
        except ImportError as error:
            raise ImportError(
                f"catapult_ext.{self.name}.to_scipy: needs scipy, "
                "install it with pip install 'catapult_ext[test]'"
            ) from error

        def apply(operator: LinearOperator, array: Any) -> Any:
            tensor = torch.as_tensor(array, device="cpu").to(dtype=self.dtype, device=self.device)
            return (operator @ tensor).cpu().numpy()

        return ScipyOperator(
            self.shape,
            matvec=lambda x: apply(self, x.reshape(-1)),
            matmat=lambda x: apply(self, x),
            rmatvec=lambda x: apply(self.T, x.reshape(-1)),
            rmatmat=lambda x: apply(self.T, x),
            dtype=torch.empty(0, dtype=self.dtype, device="cpu").numpy().dtype,
        )

    def _unit_columns(self, start: int, stop: int) -> Tensor:
        unit = torch.zeros(self.shape[1], stop - start, dtype=self.dtype, device=self.device)
        unit[start:stop] = torch.eye(stop - start, dtype=self.dtype, device=self.device)
        return unit

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        v.fail(
            self.name,
            "is no array: .dense() writes it out, and .to_scipy() is an operator on arrays",
            f"one of shape {tuple(self.shape)} where an array is needed",
            TypeError,
        )

    def __repr__(self) -> str:
        return f"{self.name}(shape={self.shape}, dtype={self.dtype}, device={self.device})"


class Identity(LinearOperator):
    """The identity on the space that the square operator ``like`` acts on."""

    name = "Identity"

    def __init__(self, like: LinearOperator) -> None:
        square = like.shape[0] == like.shape[1]
        v.require(square, f"{like.name}.shift", "the operator must be square", like.shape)
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device

    def _matmat(self, vectors: Tensor) -> Tensor:
        return vectors

    def dense(self, *, progress: Progress = None) -> Tensor:
        """The identity matrix; there is no progress to tell of."""
        return torch.eye(self.shape[0], dtype=self.dtype, device=self.device)

    @property
    def skew_is_rounding(self) -> bool:
        """It has none."""
        return True

    @property
    def lower_bound(self) -> float:
        """1."""
        return 1.0

    def diagonal(self) -> Tensor:
        """Ones (n,)."""
        return torch.ones(self.shape[0], dtype=self.dtype, device=self.device)

    def coarse(self) -> Identity:
        """Itself: it rounds nothing."""
        return self


class Transposed(LinearOperator):
    """A' of an operator that is not symmetric."""

    symmetric = False

    def __init__(self, operator: LinearOperator) -> None:
        self.operator, self.name = operator, f"{operator.name}.T"
        self.shape = (operator.shape[1], operator.shape[0])
        self.dtype, self.device = operator.dtype, operator.device
        self.columns = operator.columns

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self.operator._rmatmat(vectors)

    def _rmatmat(self, vectors: Tensor) -> Tensor:
        return self.operator._matmat(vectors)

    @property
    def T(self) -> LinearOperator:
        """The operator itself."""
        return self.operator

    def dense(self, *, progress: Progress = None) -> Tensor:
        """The transposed matrix."""
        return self.operator.dense(progress=progress).T.contiguous()


class Combination(LinearOperator):
    """c_1 A_1 + c_2 A_2 + ...; dense matrix and diagonal are combined from those of the terms."""

    name = "Combination"

    def __init__(self, terms: Sequence[tuple[float, LinearOperator]]) -> None:
        self.terms = tuple(terms)
        first = self.terms[0][1]
        self.shape, self.dtype, self.device = first.shape, first.dtype, first.device
        self.symmetric = all(a.symmetric for _, a in self.terms)
        self.mixed = min((a.mixed for _, a in terms if hasattr(a, "mixed")), default="")

    def _sum(self, of: Callable[[LinearOperator], Tensor]) -> Tensor:
        (c, a), *rest = self.terms
        out = of(a) * c
        for c, a in rest:
            out.add_(of(a), alpha=c)
        return out

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self._sum(lambda a: a._product(vectors))

    def _rmatmat(self, vectors: Tensor) -> Tensor:
        return self._sum(lambda a: a._rmatmat(vectors))

    @property
    def parameter_names(self) -> tuple[str, ...] | None:
        """Parameter names of the first term."""
        return self.terms[0][1].parameter_names

    @property
    def parameter_shapes(self) -> tuple[torch.Size, ...] | None:
        """Parameter shapes of the first term."""
        return self.terms[0][1].parameter_shapes

    @property
    def skew_is_rounding(self) -> bool:
        """Whether the property holds for every term."""
        return all(a.skew_is_rounding for _, a in self.terms)

    @property
    def lower_bound(self) -> float | None:
        """The sum over the terms, where each has one and no factor is negative (but of I)."""
        total = 0.0
        for c, a in self.terms:
            bound = a.lower_bound
            if bound is None or (c < 0 and not isinstance(a, Identity)):
                return None
            total += c * bound
        return total

    def dense(self, *, progress: Progress = None) -> Tensor:
        """The combined matrix; ``progress`` tells of each term in turn."""
        return self._sum(lambda a: a.dense(progress=progress))

    def diagonal(self) -> Tensor:
        """The combined diagonal (n,)."""
        return self._sum(lambda a: a.diagonal())

    @property
    def rounding_unit(self) -> float:
        """The largest of the terms."""
        return max(a.rounding_unit for _, a in self.terms)

    def half_product(self, vectors: Tensor) -> Tensor | None:
        """Half product of a positive multiple of one operator; None for sums and shifts."""
        (c, a), *rest = self.terms
        found = None if rest or c <= 0 else a.half_product(vectors)
        return None if found is None else found * math.sqrt(c)

    def dual(self) -> Dual | None:
        """Dual of a positive multiple of one operator; None for sums and shifts."""
        (c, a), *rest = self.terms
        dual = None if rest or c <= 0 else a.dual()
        if dual is None:
            return None
        root, lift, restrict = math.sqrt(c), dual.lift, dual.restrict
        return Dual(c * dual.operator, lambda u: root * lift(u), lambda t: root * restrict(t))

    def coarse(self) -> Combination:
        """The same combination of coarse products, where every term offers them."""
        for _, a in self.terms:
            v.require(hasattr(a, "coarse"), "Combination.coarse", "terms must offer it", a.name)
        return Combination([(c, a.coarse()) for c, a in self.terms])  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return " + ".join(f"{c:g} * {a!r}" for c, a in self.terms)


def combine(terms: Sequence[tuple[float, LinearOperator]]) -> Combination:
    """The sum of c * A over ``terms``, nested sums laid flat.

    Raises:
        ValueError: shapes or devices that differ, a factor that is not finite.
        TypeError: dtypes that differ.
    """
    flat: list[tuple[float, LinearOperator]] = []
    for c, a in terms:
        v.require(math.isfinite(c), a.name, "a factor must be finite", c)
        inner = a.terms if isinstance(a, Combination) else ((1.0, a),)
        flat += [(float(c) * ci, ai) for ci, ai in inner]
    first = flat[0][1]
    for _, a in flat[1:]:
        where = f"{first.name} + {a.name}"
        v.require(a.shape == first.shape, where, f"shapes must agree ({first.shape})", a.shape)
        v.require(a.device == first.device, where, f"both must be on {first.device}", a.device)
        if a.dtype != first.dtype:
            v.fail(where, f"both must have dtype {first.dtype}", a.dtype, TypeError)
    return Combination(flat)
