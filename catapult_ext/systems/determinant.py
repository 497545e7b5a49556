"""Log-determinants: from a factor, or by random vectors and Gauss rules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._free_memory import free_bytes
from catapult_ext._progress import Progress, check_progress, counted
from catapult_ext.eig.random import Estimate
from catapult_ext.systems.factor import DIRECT, factorised, logdet_error
from catapult_ext.systems.lanczos import AT_ONCE, LAG, Lanczos
from catapult_ext.systems.problem import System


@no_autocast()
def logdet(
    A: Any,
    *,
    shift: float = 0.0,
    samples: int = 32,
    steps: int = 64,
    lower: float | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> Estimate:
    """Log-determinant of a symmetric positive definite A + shift I, with its error.

    Args:
        A: see :func:`catapult_ext.solve`.  An explicit matrix of at most 16384 rows that fits in
            memory is factorised.
        shift: added to the diagonal.
        samples: number of random vectors for other operators, >= 2.
        steps: maximal number of Lanczos steps per vector.
        lower: a lower bound on the eigenvalues of A that you know; default ``A.lower_bound``.
        seed: seed of the vectors.
        progress: True for a bar, or a function of (vectors done, ``samples``).

    Returns:
        :class:`Estimate`.  For a factorised matrix, ``samples`` is 0 and ``error`` bounds the
        rounding.  For other operators, ``error`` is the standard error of the mean of
        z' log(A + shift I) z over random sign vectors z, plus half the mean width of the brackets
        from Gauss and Gauss-Radau rules (in exact arithmetic).  See Golub, Meurant 2010, "Matrices,
        Moments and Quadrature"; Ubaru, Chen, Saad 2017.

    Raises:
        TypeError, ValueError: as :func:`catapult_ext.solve`; no positive lower bound on the
            eigenvalues of A + shift I is known.

    Cost:
        Two or three factorisations of n^3/3 flops; or at most ``samples * steps`` products, fewer
        if the brackets become narrow relative to the scatter.

    Example:
        >>> value, error = cx.logdet(torch.eye(8), shift=1.0)
        >>> print(f"{value:.4f}")
        5.5452
    """
    where = "logdet"
    check_progress(where, progress)
    v.integers(where, samples=samples, steps=steps, seed=seed)
    v.require(samples >= 2, where, "samples must be >= 2", samples)
    v.require(steps >= 1, where, "steps must be >= 1", steps)
    system = System.of(A, shift, lower, where)
    n, explicit = system.a.n, system.a.explicit
    if explicit is not None and n <= DIRECT and 24 * n**2 <= free_bytes():
        factor = factorised(system)
        value = torch.tensor(factor.logdet(), dtype=torch.float64, device="cpu")
        return Estimate(value, torch.full_like(value, logdet_error(factor)), 0, 0)
    known = system.lower is not None
    needs = "lower + shift must be > 0 (an NTK needs shift=, an operator that does not say how "
    needs += "small its eigenvalues are lower=)"
    v.require(known, where, needs, "none known" if lower is None else lower + shift)
    draw = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (n, samples), generator=draw, device="cpu").double() * 2 - 1
    below, above, spent = [], [], 0
    with counted(progress, where, samples, "vectors") as counter:
        for some in signs.to(system.a.device).split(AT_ONCE, 1):
            low, high, products = log_brackets(system, some, steps)
            below.append(low)
            above.append(high)
            spent += products
            counter.add(some.shape[1])
    low, high = torch.cat(below), torch.cat(above)
    middle = (low + high) / 2
    scatter = middle.std(unbiased=True) / math.sqrt(samples)
    error = scatter + (high - low).mean() / 2
    return Estimate(middle.mean().cpu(), error.cpu(), int(samples), spent)


def log_brackets(system: System, signs: Tensor, steps: int) -> tuple[Tensor, Tensor, int]:
    """Numbers (k,) below and above z' log(A + shift I) z."""
    space = Lanczos(system, signs, steps)
    k = signs.shape[1]
    low, high = signs.new_zeros(k), signs.new_zeros(k)
    while not bool(space.ended.all()) and space.m < space.most:
        space.step()
        if space.m % LAG and space.m < space.most and not bool(space.ended.any()):
            continue
        for i in range(k):
            m = min(space.m, int(space.length[i]))
            low[i], high[i] = _bracket(space, i, m, bool(space.ended[i]))
        # a tenth of what one vector's number differs from another's is narrow enough
        if k > 1 and (high - low).max().item() <= 0.1 * (low + high).std().item() / 2 / k**0.5:
            break
    return low, high, space.matvecs


def _bracket(space: Lanczos, i: int, m: int, ended: bool) -> tuple[float, float]:
    """Gauss's rule, which is too large for a logarithm, and Radau's with the lower bound."""
    a = space.system.lower
    assert a is not None
    values, s = space.ritz(i, m)
    square = space.sizes[i].item() ** 2
    gauss = square * (values.clamp_min(a).log() @ s[0].square()).item()
    if ended:
        return gauss, gauss
    # the last diagonal entry that makes the lower bound an eigenvalue
    t = torch.diag(space.alpha[i, :m] - a)
    beta = space.beta[i, : m - 1]
    t += torch.diag(beta, 1) + torch.diag(beta, -1)
    end = torch.zeros(m, dtype=t.dtype, device=t.device)
    end[-1] = space.beta[i, m - 1] ** 2
    alpha = a + torch.linalg.solve(t, end)[-1]
    whole = torch.zeros(m + 1, m + 1, dtype=t.dtype, device=t.device)
    whole[:m, :m] = t + a * torch.eye(m, dtype=t.dtype, device=t.device)
    whole[m, m] = alpha
    whole[m, m - 1] = whole[m - 1, m] = space.beta[i, m - 1]
    values, s = torch.linalg.eigh(whole)
    radau = square * (values.clamp_min(a).log() @ s[0].square()).item()
    return min(radau, gauss), max(radau, gauss)
