"""Estimates from random vectors: trace, diagonal and spectral density, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext import ops
from catapult_ext._autocast import no_autocast
from catapult_ext._deprecated import warn_renamed
from catapult_ext._progress import Progress, counted
from catapult_ext._shown import Shown, first, number
from catapult_ext.eig.device_krylov import krylov
from catapult_ext.eig.operand import Operand, as_operand
from catapult_ext.eig.sums import inner, on_host
from catapult_ext.figures.drawn import Drawn
from catapult_ext.figures.spectrum import density_figure
from catapult_ext.ops.routes import serves

_AT_ONCE = 8  # random vectors multiplied together
_HALF_BYTES = 1 << 27  # of B z of a few of them, where A = B'B


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(Shown, saved=True):
    """A random estimate; ``value, error = ...`` unpacks it.

    Attributes:
        value: scalar (trace) or (n,) (diagonal), dtype of the operator.
        error: its standard error, same shape: half the width of a 68 % interval (Student's t for
            few samples), including variance that few random signs may have missed; 0 only
            for a zero operator or n = 1, where the value is exact.
        samples: number of random vectors averaged.
        matvecs: products with the operator, in columns.

    Examples:
        >>> value, error = cx.hutchinson_trace(torch.eye(10), samples=4)
        >>> float(value)
        10.0
    """

    value: Tensor
    error: Tensor
    samples: int
    matvecs: int

    def __iter__(self) -> Iterator[Tensor]:
        yield self.value
        yield self.error

    def _line(self) -> str:
        cost = f"({self.samples} random vectors, {self.matvecs} products)"
        if self.value.dim() == 0:
            return f"{number(self.value.item())} +- {self.error.item():.1g} {cost}"
        most = self.error.abs().max().item() if self.error.numel() else 0.0
        values = first(self.value.tolist())
        return f"{len(self.value)} values {values}, each +- {most:.1g} or less {cost}"

    def _table(self) -> list[dict[str, Any]]:
        pairs = zip(self.value.reshape(-1).tolist(), self.error.reshape(-1).tolist(), strict=True)
        return [{"value": value, "error": error} for value, error in pairs]


@no_autocast()
def hutchinson_trace(
    A: Any, samples: int = 32, *, seed: int = 0, progress: Progress = None
) -> Estimate:
    """Estimate the trace of a symmetric operator: mean of z'Az over random signs z.

    The exact trace of an operator of this package is its method ``trace()``.

    Args:
        A: see :func:`catapult_ext.eigsh`.
        samples: vectors, >= 2.
        seed: seed of the vectors.
        progress: True for a bar, or a function of (products done, products); see
            :mod:`catapult_ext._progress`.

    Returns:
        :class:`Estimate`; the variance of one vector is 2 (|A|_F^2 - sum of squared diagonal
        entries) (Hutchinson 1989).  ``error`` estimates this variance from the samples, and adds 2
        |A|_F^2 2^(1-samples): a single pair of entries shows no variance with probability
        2^(1-samples).

    Raises:
        TypeError, ValueError: as :func:`catapult_ext.eigsh`; samples < 2; non-finite products.

    Cost:
        ``samples`` products, and one more if all of them are zero. For A = B'B (an NTK, a GGN of a
        loss with a factor) a sample is |B z|^2, which is half a product; pairs of the vectors B z
        give |A|_F^2.

    Examples:
        >>> A = cx.NTK(nn.Linear(3, 2), torch.randn(4, 3))
        >>> trace, error = cx.hutchinson_trace(A, samples=64)
        >>> bool((trace - A.dense().trace()).abs() <= 6 * error + 1e-3)
        True
    """
    where = "hutchinson_trace"
    a = as_operand(A, where)
    with counted(progress, where, samples, "products") as counter:
        a = a.counted(counter)
        halves = _halves(a, samples, seed, where)
        found = _probed(a, samples, seed, where) if halves is None else halves
    values, dtype = found.quadratic, a.dtype
    # the mean of |A z|^2 is |A|_F^2
    error = _standard_error(values.var(unbiased=True), 2 * found.energy.sum().cpu(), found)
    return Estimate(values.mean().to(dtype), error.to(dtype), samples, found.products)


@no_autocast()
def hutchinson_diagonal(
    A: Any, samples: int = 32, *, seed: int = 0, progress: Progress = None
) -> Estimate:
    """Estimate the diagonal of a symmetric operator: mean of z * (Az) over random signs z.

    Entry i has variance sum_{j != i} A_ij^2 for one vector (Bekas, Kokiopoulou, Saad 2007).
    Arguments, errors raised and cost are those of :func:`hutchinson_trace`; the result is (n,).
    Memory: 2 n numbers and a few blocks of vectors.

    Examples:
        >>> found = cx.hutchinson_diagonal(torch.diag(torch.tensor([1.0, 2.0])), samples=4)
        >>> found.value.tolist()  # exact where A is diagonal
        [1.0, 2.0]
    """
    where = "hutchinson_diagonal"
    a = as_operand(A, where)
    with counted(progress, where, samples, "products") as counter:
        found = _probed(a.counted(counter), samples, seed, where)
    variance = (found.squares - found.mean.square()).clamp_min(0) * samples / (samples - 1)
    error, dtype = _standard_error(variance, found.energy, found), found.operand.dtype
    return Estimate(found.mean.to(dtype), error.to(dtype), samples, found.products)


def trace(A: Any, samples: int = 32, *, seed: int = 0) -> Estimate:
    """Deprecated name of :func:`hutchinson_trace`."""
    warn_renamed("trace", "hutchinson_trace")
    return hutchinson_trace(A, samples, seed=seed)


def diagonal(A: Any, samples: int = 32, *, seed: int = 0) -> Estimate:
    """Deprecated name of :func:`hutchinson_diagonal`."""
    warn_renamed("diagonal", "hutchinson_diagonal")
    return hutchinson_diagonal(A, samples, seed=seed)


@dataclass(frozen=True, eq=False)
class _Probed:
    """Products with random signs z, in float64."""

    operand: Operand
    samples: int
    quadratic: Tensor  # (samples,) z'Az
    mean: Tensor  # (n,) of z * (Az)
    squares: Tensor  # (n,) mean square of it
    energy: Tensor  # (n,) estimate of the squared norms of the rows of A
    products: int


def _signs(a: Operand, samples: int, seed: int, where: str) -> Iterator[Tensor]:
    """Random signs (n, K), K of ``samples`` at a time."""
    v.integers(where, samples=samples, seed=seed)
    v.require(samples >= 2, where, "samples must be >= 2", samples)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, samples, _AT_ONCE):
        count = min(_AT_ONCE, samples - start)
        signs = torch.randint(0, 2, (count, a.n), generator=generator, device="cpu") * 2 - 1
        yield signs.to(dtype=a.dtype, device=a.device).T


def _halves(a: Operand, samples: int, seed: int, where: str) -> _Probed | None:
    """|B z|^2 of the same signs, for A = B'B; None where there is no B, or all of it is zero.

    (z'Az2)^2 of two of the vectors has the mean |A|_F^2, which is at most (tr A)^2: two standard
    errors above the mean of all pairs, and the square of the trace where there is one pair.
    """
    if a.half_product is None:
        return None
    forms, pairs, at_once = [], [], 2  # until the size of B z is known
    for signs in _signs(a, samples, seed, where):
        for z in signs.split(at_once, 1):
            half = a.half_product(z)
            if half is None:
                return None
            v.finite(bool(torch.isfinite(half).all()), where, "products with A")
            products = on_host(inner(half.T, half.T))[0]
            forms.append(products.diagonal())
            above = torch.ones_like(products, dtype=torch.bool).triu(1)
            pairs.append(products[above].square())
            room = _HALF_BYTES // (len(half) * half.element_size())
            at_once = max(2, min(_AT_ONCE, room))
    quadratic, seen = torch.cat(forms), torch.cat(pairs)
    if not bool(quadratic.any()):
        return None
    energy = quadratic.mean().square()
    if len(seen) > 1:
        energy = torch.minimum(energy, seen.mean() + 2 * seen.std() / math.sqrt(len(seen)))
    none = torch.zeros(0, dtype=torch.float64, device="cpu")
    return _Probed(a, samples, quadratic, none, none, energy, samples)


def _probed(a: Operand, samples: int, seed: int, where: str) -> _Probed:
    total = torch.zeros(a.n, dtype=torch.float64, device=a.device)
    squares, quadratic = total.clone(), []
    for z in _signs(a, samples, seed, where):
        parts = (z * a.product(z)).double()
        v.finite(bool(torch.isfinite(parts).all()), where, "products with A")
        quadratic.append(parts.sum(0).cpu())
        total += parts.sum(1)
        squares += parts.square().sum(1)
    squares /= samples
    energy, products = squares, samples
    if not bool(squares.any()):
        # signs can all lie in the null space of an operator; a Gaussian vector does not
        generator = torch.Generator().manual_seed(seed + 1)
        z = torch.randn(a.n, 1, generator=generator, dtype=a.dtype, device="cpu").to(a.device)
        energy, products = a.product(z).double()[:, 0].square(), samples + 1
    return _Probed(a, samples, torch.cat(quadratic), total / samples, squares, energy, products)


def _standard_error(variance: Tensor, energy: Tensor, found: _Probed) -> Tensor:
    """Half-width of a 68 % interval of the mean of the samples; 0 in one dimension.

    Args:
        variance: unbiased estimate from the values.
        energy: the variance that would be there if nothing of A were diagonal.  The signs of one
            pair of entries agree in all samples with probability 2^(1-samples); that share of it
            may be unseen.
        found: the products that the values come from.
    """
    if found.operand.n == 1:
        return torch.zeros_like(variance)
    unseen = energy * 2.0 ** (1 - found.samples)
    return student(found.samples - 1) * ((variance + unseen) / found.samples).sqrt()


def student(degrees: int) -> float:
    """Quantile of Student's t at one standard deviation (68.27 %, two-sided), good to 2e-4."""
    x = 1 / degrees
    return 1 + x / 2 + x**2 / 4 + x**3 / 16 + 0.0248 * x**4


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity(Drawn, saved=True):
    """Distribution of the eigenvalues of an n x n operator, as weighted points a random vector.

    Attributes:
        nodes: (samples, m) Ritz values, ascending; float64.
        weights: (samples, m) their weights, summing to 1 a row.
        error: estimated bound of the Wasserstein-1 distance between the mean distribution and that
            of the eigenvalues; see :func:`spectral_density`.
        low, high: least and greatest Ritz value met.
        n: size of the operator.
        matvecs: products, in columns.

    Examples:
        >>> density = cx.spectral_density(torch.diag(torch.linspace(0, 1, 50)), steps=16, samples=4)
        >>> -0.01 < density.low < density.high < 1.01
        True
    """

    nodes: Tensor
    weights: Tensor
    error: float
    low: float
    high: float
    n: int
    matvecs: int

    def _line(self) -> str:
        return (
            f"density of {self.n} eigenvalues from {self.low:.5g} to {self.high:.5g}, "
            f"distance to the truth at most {self.error:.1g} "
            f"({len(self.nodes)} random vectors, {self.matvecs} products)"
        )

    def _table(self) -> list[dict[str, Any]]:
        """The distribution function at 11 places."""
        x = torch.linspace(self.low, self.high, 11, dtype=torch.float64, device="cpu")
        share, error = self.cdf(x)
        rows = zip(x.tolist(), share.tolist(), error.tolist(), strict=True)
        return [{"eigenvalue": a, "share below": b, "error": c} for a, b, c in rows]

    def _figure(self, name: str = "operator") -> Any:
        """The density with its band of two standard errors; ``name`` is that of the operator."""
        return density_figure(self.low, self.high, self.density, name, self.n)

    def cdf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Share of eigenvalues <= x and its standard error over the vectors; x (j,), float64."""
        below = self.nodes[:, None, :] <= x.double()[None, :, None]
        each = (below * self.weights[:, None, :]).sum(-1)
        return each.mean(0), each.std(0, unbiased=True) / math.sqrt(len(each))

    def density(self, x: Tensor, width: float | None = None) -> tuple[Tensor, Tensor]:
        """Density smoothed by a Gaussian, and its standard error; x (j,), float64.

        Args:
            x: where.
            width: standard deviation of the Gaussian; default 1 % of the range.
        """
        width = 0.01 * max(self.high - self.low, 1e-300) if width is None else width
        v.require(width > 0, "SpectralDensity.density", "width must be > 0", width)
        far = (x.double()[None, :, None] - self.nodes[:, None, :]) / width
        bell = torch.exp(-far.square() / 2) / (width * math.sqrt(2 * math.pi))
        each = (bell * self.weights[:, None, :]).sum(-1)
        return each.mean(0), each.std(0, unbiased=True) / math.sqrt(len(each))

    def distance(self, eigenvalues: Tensor) -> float:
        """Wasserstein-1 distance to the distribution of given eigenvalues (j,)."""
        mine = self.weights.reshape(-1) / len(self.weights)
        exact = eigenvalues.double().reshape(-1)
        points = torch.cat([self.nodes.reshape(-1), exact])
        mass = torch.cat([mine, torch.full_like(exact, -1 / len(exact))])
        order = points.argsort()
        return float((mass[order].cumsum(0)[:-1].abs() * points[order].diff()).sum())


@no_autocast()
def spectral_density(
    A: Any,
    steps: int = 64,
    samples: int = 16,
    *,
    seed: int = 0,
    confidence: float = 3.0,
    progress: Progress = None,
) -> SpectralDensity:
    """Eigenvalue distribution by stochastic Lanczos quadrature.

    Each of ``samples`` random vectors z gives, by m reorthogonalised Lanczos steps, the Gauss
    quadrature of its spectral measure (Golub and Meurant 2010; Ubaru, Chen, Saad 2017); their mean
    estimates the spectrum.  ``error`` adds two parts.  Sampling: ``confidence`` times the standard
    error of the mean distribution function, integrated over the range. This standard error is the
    larger of that of the samples and of sqrt(2 F (1 - F) / (n + 2)) / sqrt(samples), which Gaussian
    vectors have for F in [1/n, 1 - 1/n] (a few vectors may all miss a single eigenvalue).
    Quadrature: a measure and its Gauss rule share 2m moments, so that between two nodes their
    distribution functions differ by at most the larger of the two weights
    (Chebyshev-Markov-Stieltjes). This difference is integrated too.

    Args:
        A: see :func:`catapult_ext.eigsh`; ``dual()`` is not used.
        steps: m, Lanczos steps per vector (at most n are made).
        samples: random vectors, >= 2.
        seed: seed of the vectors.
        confidence: standard deviations of sampling error in ``error``.
        progress: True for a bar, or a function of (products done, products); see
            :mod:`catapult_ext._progress`.

    Raises:
        TypeError, ValueError: as :func:`catapult_ext.eigsh`; steps < 1, samples < 2.

    Cost:
        ``steps * samples`` products (fewer if a Krylov space is exhausted) and memory for 2 (m + 1)
        n numbers.

    Examples:
        >>> density = cx.spectral_density(torch.diag(torch.linspace(0, 1, 50)), steps=16, samples=4)
        >>> density.nodes.shape, density.n
        (torch.Size([4, 16]), 50)
    """
    where = "spectral_density"
    a = as_operand(A, where)
    v.integers(where, steps=steps, samples=samples, seed=seed)
    v.numbers(where, confidence=confidence)
    v.require(steps >= 1, where, "steps must be >= 1", steps)
    v.require(samples >= 2, where, "samples must be >= 2", samples)
    v.require(confidence > 0, where, "confidence must be > 0", confidence)
    m, products = min(int(steps), a.n), 0
    nodes = torch.zeros(samples, m, dtype=torch.float64, device="cpu")
    weights = torch.zeros_like(nodes)
    spaces: list[tuple[Tensor, float]] = []  # projections T and the scales of their operators
    open_ended = torch.ones(samples, dtype=torch.float64, device="cpu")
    with counted(progress, where, m * samples, "products") as counter:
        a = a.counted(counter)
        for i in range(samples):
            space = krylov(a, m, seed * samples + i, where)
            space.begin(space.random(1))
            while space.m < m and len(space.next):
                space.extend()
            spaces.append((space.t[: space.m, : space.m].clone(), space.scale or 1.0))
            open_ended[i] = float(len(space.next) > 0)  # else the measure is known exactly
            products += space.matvecs
            counter.at((i + 1) * m)  # a Krylov space that ended early makes fewer
    _quadrature(spaces, nodes, weights, a.device)
    weights /= weights.sum(1, keepdim=True)
    sampling = confidence * _sampling_error(nodes, weights, a.n)
    error = sampling + _quadrature_error(nodes, weights * open_ended[:, None])
    low, high = nodes.min().item(), nodes.max().item()
    return SpectralDensity(nodes, weights, error, low, high, a.n, products)


def _quadrature(
    spaces: list[tuple[Tensor, float]], nodes: Tensor, weights: Tensor, device: torch.device
) -> None:
    """Fill in nodes and weights (samples, m) of the Gauss rules, one call for all of one size."""
    for held in {len(t) for t, _ in spaces}:
        some = [i for i, (t, _) in enumerate(spaces) if len(t) == held]
        there = device if serves("tridiag_eigh", device, held) else "cpu"
        alpha = torch.stack([spaces[i][0].diagonal() for i in some]).to(there)
        beta = torch.stack([spaces[i][0].diagonal(1) for i in some]).to(there)
        values, first = on_host(*ops.tridiag_eigh(alpha, beta)[:2])
        scales = torch.tensor([[spaces[i][1]] for i in some], dtype=torch.float64, device="cpu")
        nodes[some, :held] = values * scales
        # a Krylov space that ended early: the last node repeats with no weight
        nodes[some, held:] = (values * scales)[:, -1:]
        weights[some, :held] = first.square()


def _sampling_error(nodes: Tensor, weights: Tensor, n: int) -> float:
    """Integral over x of the standard error of the mean distribution function."""
    points, order = nodes.reshape(-1).sort()
    row = torch.arange(len(nodes), device="cpu").repeat_interleave(nodes.shape[1])[order]
    jumps = torch.zeros(len(nodes), len(points), dtype=torch.float64, device="cpu")
    jumps[row, torch.arange(len(points), device="cpu")] = weights.reshape(-1)[order]
    each = jumps.cumsum(1)
    share = each.mean(0).clamp(1 / n, 1 - 1 / n) if n > 1 else each.new_zeros(())
    known = 2 * share * (1 - share) / (n + 2)
    spread = (torch.maximum(each.var(0, unbiased=True), known) / len(nodes)).sqrt()
    return float((spread[:-1] * points.diff()).sum())


def _quadrature_error(nodes: Tensor, weights: Tensor) -> float:
    """Mean over the vectors of the distance between a measure and its Gauss rule, bounded."""
    beside = torch.maximum(weights[:, 1:], weights[:, :-1])
    return float((beside * nodes.diff(dim=1)).sum(1).mean())
