"""Several pairs, found in one Krylov space and proved by a second random vector."""

import pytest
import torch

import catapult_ext as cx
from catapult_ext.eig import deflated, solve
from catapult_ext.eig.operand import as_operand
from catapult_ext.eig.pairs import Options
from catapult_ext.testing.spectra import Wrapped


def _matrix(eigenvalues, seed=0):
    n, g = len(eigenvalues), torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
    a = (q * eigenvalues) @ q.T
    return (a + a.T) / 2


def _graded(n=300):
    return 0.8 ** torch.arange(n, dtype=torch.float64)


def _options(k, p=0.99, seed=0):
    return Options(k, "LA", 1e-3, 1000, seed, p, "test")


@pytest.mark.parametrize("k", [2, 5])
def test_fewer_products_than_blocks_and_errors_that_hold(k):
    a = _matrix(_graded())
    pairs, spent = deflated.deflated(as_operand(Wrapped(a), "test"), _options(k))
    block = solve._iterated(as_operand(Wrapped(a), "test"), torch.empty(0, 300), _options(k))
    assert pairs is not None
    assert pairs.converged
    assert pairs.index == "random(0.99)"
    assert spent == pairs.matvecs <= 0.75 * block.matvecs
    miss = (pairs.values * pairs.scale - _graded()[:k]).abs()
    assert bool((miss <= pairs.errors * pairs.scale).all())


@pytest.mark.parametrize("copies", [2, 3, 4])
def test_copies_are_found(copies):
    e = torch.linspace(0, 0.5, 200, dtype=torch.float64)
    e[-copies:] = 1.0
    found = cx.eigsh(Wrapped(_matrix(e)), k=4)
    assert found.converged
    assert bool(((found.eigenvalues - e.flip(0)[:4]).abs() <= found.errors).all())


def test_the_bound_of_the_second_vector_holds_with_its_probability():
    # a hidden eigenvalue: the second vector misses it with half of 1 - p at most
    e = 0.3 * torch.rand(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    e[:2] = torch.tensor([1.0, 0.9])
    a, p, wrong = _matrix(e), 0.5, 0
    hidden = torch.linalg.eigh(a)[1][:, -1]
    for seed in range(200):
        operand = as_operand(Wrapped(a), "test")
        space = deflated.krylov(operand, 60, seed, "test")
        search = deflated._Search(space, _options(2, p, seed))
        first = space.random(1).double()  # deflated rows that hold nothing of the top pair
        space.begin(first - (first @ hidden)[:, None] * hidden)
        for _ in range(8):
            space.extend()
        search.deflate()
        for _ in range(3):
            space.extend()
            search.clean()
        wrong += search._mu() < 1.0 / space.scale
    assert 0 < wrong <= 0.25 * 200


def test_m_of_mu_bounds_every_eigenvalue():
    a = _matrix(_graded(80))
    space = deflated.krylov(as_operand(Wrapped(a), "test"), 40, 0, "test")
    search = deflated._Search(space, _options(3))
    space.begin(space.random(1))
    for i in range(14):
        space.extend()
        if i == 7:
            search.deflate()
        elif i > 7:
            search.clean()
    v = space.v[: search.first]
    rest = torch.eye(80, dtype=torch.float64) - v.T @ v
    mu = torch.linalg.eigvalsh(rest @ (a / space.scale) @ rest)[-1].item()
    ritz = search.ritz()
    theta = ritz[0][-3:].flip(0)
    residual = (a / space.scale) @ space.v[: space.m].T @ ritz[1]
    residual -= space.v[: space.m].T @ ritz[1] * ritz[0]
    torch.testing.assert_close(residual.norm(dim=0), ritz[2].norm(dim=1))
    true = _graded(80)[:3] / space.scale
    assert bool((theta + search._beyond(ritz, mu) >= true - 1e-14).all())
    # with less than the largest eigenvalue of what is left it is none
    assert not bool((theta + search._beyond(ritz, -1.0) >= true).all())


def test_what_it_cannot_prove_goes_to_blocks():
    e = torch.linspace(0, 1, 200, dtype=torch.float64)
    pairs, spent = deflated.deflated(as_operand(Wrapped(_matrix(e)), "test"), _options(3))
    found = cx.eigsh(Wrapped(_matrix(e)), k=3)
    assert pairs is None
    assert 0 < spent <= 12 * 3 + 16
    assert found.converged
    assert found.index_check == "random(0.99)"
    assert found.matvecs > spent
    assert bool(((found.eigenvalues - e.flip(0)[:3]).abs() <= found.errors).all())


@pytest.mark.parametrize(("rank", "k"), [(8, 2), (8, 5), (5, 3), (3, 2)])
def test_low_rank_takes_two_products_more_than_the_rank(rank, k, dtype):
    e = (rank - torch.arange(200)).clamp_min(0).to(dtype)
    for seed in range(5):
        found = cx.eigsh(Wrapped(torch.diag(e)), k=k, seed=seed)
        assert found.converged
        assert found.matvecs <= rank + 2
        assert bool(((found.eigenvalues - e[:k]).abs() <= found.errors).all())


def test_fewer_eigenvalues_than_pairs_go_to_blocks():
    e = torch.ones(40, dtype=torch.float64)
    found = cx.eigsh(Wrapped(torch.diag(e)), k=3)
    assert found.converged
    torch.testing.assert_close(found.eigenvalues, e[:3])


def test_small_limits_use_blocks():
    a = Wrapped(_matrix(_graded()))
    found = cx.eigsh(a, k=2, maxiter=7)
    assert found.matvecs <= 8
    assert not found.converged
