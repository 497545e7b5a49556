"""XTrace and XDiag: exact where they must be, unbiased, with bars that hold."""

from __future__ import annotations

import pytest
import torch

import catapult_ext as cx

F64 = torch.float64


def decaying(n=120, rate=0.7, seed=0, dtype=F64):
    """A positive matrix with eigenvalues rate^i."""
    draw = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=F64))
    values = rate ** torch.arange(n, dtype=F64)
    return ((q * values) @ q.T).to(dtype)


def by_hand(a, omega):
    """The estimates of each vector, by projections written out."""
    n, m = omega.shape
    y = a @ omega
    each = []
    for i in range(m):
        others = [j for j in range(m) if j != i]
        q, _ = torch.linalg.qr(y[:, others])
        left = omega[:, i] - q @ (q.T @ omega[:, i])
        scale = (n - m + 1) / left.square().sum()
        each.append((q.T @ a @ q).trace() + left @ a @ left * scale)
    return torch.stack(each)


@pytest.mark.parametrize("seed", range(3))
def test_xtrace_is_the_mean_of_the_leave_one_out_estimates(seed):
    a, m = decaying(60, 0.9, seed), 6
    draw = torch.Generator().manual_seed(seed)
    omega = torch.randn(m, 60, generator=draw, dtype=F64)
    omega *= 60**0.5 / omega.norm(dim=1, keepdim=True)
    each = by_hand(a, omega.T)
    found = cx.xtrace(a, 2 * m, seed=seed)
    assert found.value.item() == pytest.approx(each.mean().item(), rel=1e-9)
    spread = (each.std() * (2 / m) ** 0.5).item()
    assert spread < found.error.item() < 1.3 * spread  # Student's t
    assert found.matvecs == 2 * m


def test_xdiag_is_the_mean_of_the_leave_one_out_estimates():
    a, m = decaying(50, 0.9, 1), 5
    draw = torch.Generator().manual_seed(4)
    omega = (torch.randint(0, 2, (m, 50), generator=draw) * 2 - 1).double().T
    y, each = a @ omega, []
    for i in range(m):
        q, _ = torch.linalg.qr(y[:, [j for j in range(m) if j != i]])
        out = y[:, i] - q @ (q.T @ y[:, i])
        each.append((q * (q.T @ a).T).sum(1) + omega[:, i] * out)
    found = cx.xdiag(a, 2 * m, seed=4)
    torch.testing.assert_close(found.value, torch.stack(each).mean(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_a_low_rank_operator_is_exact(dtype, scale):
    a = decaying(80, 0.5, 2)
    values, vectors = torch.linalg.eigh(a)
    a = ((vectors[:, -5:] * values[-5:]) @ vectors[:, -5:].T * scale).to(dtype)
    eps = torch.finfo(dtype).eps
    trace, diagonal = cx.xtrace(a, 16), cx.xdiag(a, 16)
    assert trace.value.item() == pytest.approx(a.trace().item(), rel=100 * eps)
    assert trace.error.item() <= 100 * eps * a.trace().item()
    size = a.diagonal().abs().max()
    assert (diagonal.value - a.diagonal()).abs().max() <= 100 * eps * size


def test_a_small_operator_takes_its_own_columns():
    a = decaying(7)
    trace, diagonal = cx.xtrace(a, 8), cx.xdiag(a, 8)
    assert trace.value.item() == pytest.approx(a.trace().item(), rel=1e-14)
    torch.testing.assert_close(diagonal.value, a.diagonal())
    assert trace.error.item() == 0
    assert trace.matvecs == 7


def test_a_zero_operator_is_zero():
    a = torch.zeros(50, 50)
    assert cx.xtrace(a, 8).value.item() == cx.xtrace(a, 8).error.item() == 0
    assert not cx.xdiag(a, 8).value.any()


def test_bars_hold_over_seeds():
    """Of 200 seeds on a flat and on a decaying spectrum; half a 68 % interval."""
    for rate in (0.995, 0.8):
        a = decaying(150, rate)
        found = [cx.xtrace(a, 24, seed=seed) for seed in range(200)]
        miss = torch.stack([(f.value - a.trace()).abs() for f in found])
        error = torch.stack([f.error for f in found])
        assert 0.55 < (miss <= error).double().mean() < 0.95
        mean = torch.stack([f.value for f in found]).mean()
        assert (mean - a.trace()).abs() < 4 * miss.std() / 200**0.5 + 1e-12


def test_better_than_hutchinson_on_a_network_at_equal_products():
    data = cx.data.digits(train=48, dtype=F64)
    model = cx.models.fully_connected(64, 10, width=24, depth=2, seed=0).double()
    ggn = cx.GGN(model, "half_mse", data.train)
    small = ggn.dual().operator  # the same non-zero spectrum, (480, 480)
    matrix = small.dense()
    exact = matrix.trace()
    ours = [cx.xtrace(matrix, 96, seed=seed).value - exact for seed in range(100)]
    theirs = [cx.hutchinson_trace(matrix, 96, seed=seed).value - exact for seed in range(100)]
    size = [torch.stack(e).square().mean().sqrt() for e in (ours, theirs)]
    assert size[0] < size[1] / 3
    again = cx.xtrace(small, 16).value.item()
    assert again == pytest.approx(cx.xtrace(matrix, 16).value.item(), rel=1e-8)


@pytest.mark.parametrize("estimate", [cx.xtrace, cx.xdiag])
def test_bad_arguments(estimate):
    a = torch.eye(30)
    for products in (3, 5, 2, 0):
        with pytest.raises(ValueError, match="products must be an even number >= 4"):
            estimate(a, products)
    with pytest.raises(TypeError, match="products must be an int"):
        estimate(a, 4.0)
    with pytest.raises(ValueError, match="products with A must be finite"):
        estimate(Broken(), 8)


class Broken:
    shape, dtype = (30, 30), torch.float32

    def __matmul__(self, v):
        return v * float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("products", [32, 118])
def test_errors_of_low_rank_operators_count_rounding(products, dtype):
    """The estimates of all vectors agree better than the products are right."""
    draw = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(120, 15, generator=draw, dtype=F64))
    a = ((q * torch.arange(1.0, 16.0, dtype=F64)) @ q.T).to(dtype)
    a = (a + a.T) / 2
    diagonal = a.double().diagonal()
    for seed in range(6):
        trace, found = cx.xtrace(a, products, seed=seed), cx.xdiag(a, products, seed=seed)
        assert abs(trace.value.double() - diagonal.sum()) <= trace.error.double()
        assert ((found.value.double() - diagonal).abs() <= found.error.double()).all()
        eps = torch.finfo(dtype).eps
        assert trace.error.item() <= 200 * eps * diagonal.sum()
        assert found.error.max().item() <= 1000 * eps * diagonal.max()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_errors_of_xdiag_count_what_few_signs_cannot_tell_apart(dtype):
    """With four vectors about 15 of 120 entries have the signs of any other one."""
    a = torch.ones(120, dtype=dtype)
    a[0] = 1e6
    for seed in range(6):
        found = cx.xdiag(torch.diag(a), 8, seed=seed)
        assert ((found.value - a).abs() <= 6 * found.error).all()


@pytest.mark.parametrize(("rank", "products"), [(5, 8), (5, 10), (12, 22)])
def test_errors_hold_where_the_rank_is_about_the_number_of_vectors(rank, products):
    """There the estimates of all vectors may agree on a value that is too small."""
    draw = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(120, rank, generator=draw, dtype=F64))
    found = [cx.xtrace((q @ q.T + (q @ q.T).T) / 2, products, seed=s) for s in range(100)]
    off = torch.tensor([abs(float(f.value) - rank) / float(f.error) for f in found])
    assert off.max() < 8
    assert (off <= 3).double().mean() > 0.9
