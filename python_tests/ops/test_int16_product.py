"""int16_product: float32 products by 16-bit integers, their accuracy and their limits."""

import pytest
import torch

from catapult_ext import _native
from catapult_ext.ops.int16_product import (
    int16_product,
    int16_products_are_fast,
    packed_left,
    packed_right,
)

CPU = torch.device("cpu")
ISAS = _native.build_info()["usable_isas"]


@pytest.fixture(params=ISAS, autouse=True)
def isa(request):
    with _native.forced_isa(request.param):
        yield request.param


def matrix(rows, cols, across, seed=0, spread=0.0):
    """Rows and columns of magnitudes e^(spread * a normal number); ``across``: by columns."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, cols, generator=g)
    if spread:
        x *= (spread * torch.randn(rows, 1, generator=g)).exp()
        x *= (spread * torch.randn(1, cols, generator=g)).exp()
    return x.T.contiguous().T if across else x


def allowed(a, b):
    """1e-5 |a_i| |b_j| is the root of the mean square; 6 of those for the largest of all."""
    return 6e-5 * a.double().norm(dim=1)[:, None] * b.double().norm(dim=0) + 1e-37


SHAPES = [(1, 1, 1), (12, 32, 32), (13, 33, 31), (37, 41, 53), (70, 1, 130), (5, 9000, 3)]
SHAPES += [(97, 64, 65)]


@pytest.mark.parametrize("across", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape, across):
    m, k, n = shape
    a, b = matrix(m, k, across[0]), matrix(k, n, across[1], seed=1)
    out = int16_product(a, b)
    exact = a.double() @ b.double()
    assert bool(((out - exact).abs() <= allowed(a, b)).all())
    again = int16_product(a, b, out.clone())
    torch.testing.assert_close(again, out + out, rtol=1e-6, atol=0)


@pytest.mark.parametrize("across", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_sides_and_masks(shape, across):
    m, k, n = shape
    a, b = matrix(m, k, across[0]), matrix(k, n, across[1], seed=1)
    mask, before = matrix(m, n, 0, seed=2), matrix(m, n, 0, seed=3)
    right = int16_product(a, b)
    for left in (a, packed_left(a)):
        for other in (b, packed_right(b)):
            assert torch.equal(int16_product(left, other), right)
            out = int16_product(left, other, before.clone(), mask=mask)
            torch.testing.assert_close(out, mask * (before + right), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("across", [0, 1])
def test_entries_may_not_be_alike(across):
    """Each row and column has its own scale; a large entry of a row leaves the others few bits."""
    a, b = matrix(40, 60, across, spread=8.0), matrix(60, 50, across, seed=1, spread=8.0)
    exact = a.double() @ b.double()
    assert bool(((int16_product(a, b) - exact).abs() <= allowed(a, b)).all())


@pytest.mark.parametrize("across", [0, 1])
def test_sums_stay_in_32_bits(across):
    """Rows that are parallel to columns give the largest sums there are."""
    for fill in (torch.ones(4000), torch.eye(1, 4000)[0], torch.full((4000,), -1.0)):
        a = fill.expand(14, -1).contiguous()
        b = a.T if across else a.T.contiguous()
        out, exact = int16_product(a, b), a.double() @ b.double()
        assert bool(((out - exact).abs() <= 1e-3 * exact.abs()).all())


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize("across", [0, 1])
def test_magnitudes(scale, across):
    a, b = matrix(13, 65, across) * scale, matrix(65, 9, across, seed=1)
    exact = a.double() @ b.double()
    # of denormal numbers few bits are left in float32 either
    slack = 1e-37 if scale < 1e-35 else 0
    assert bool(((int16_product(a, b) - exact).abs() <= allowed(a, b) + slack).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("across", [0, 1])
def test_what_is_not_finite_gives_nan_in_its_row_or_column(bad, across):
    a, b = matrix(13, 40, across), matrix(40, 33, across, seed=1)
    right = int16_product(a, b)
    a[5, 7], b[3, 20] = bad, bad
    out = int16_product(a, b)
    assert bool(out[5].isnan().all())
    assert bool(out[:, 20].isnan().all())
    keep = torch.ones_like(out, dtype=torch.bool)
    keep[5], keep[:, 20] = False, False
    assert torch.equal(out[keep], right[keep])


def test_zero_rows_and_empty_matrices():
    a, b = matrix(13, 40, 0), matrix(40, 33, 0, seed=1)
    a[4], b[:, 2] = 0, 0
    out = int16_product(a, b)
    assert not bool(out[4].any())
    assert not bool(out[:, 2].any())
    assert int16_product(a[:0], b).shape == (0, 33)
    assert int16_product(a, b[:, :0]).shape == (13, 0)
    assert not bool(int16_product(a[:, :0].contiguous(), b[:0]).any())


def test_same_bits_on_every_instruction_set_and_thread():
    a, b = matrix(150, 300, 0), matrix(300, 170, 1, seed=1)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(int16_product(a, b))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_only_wide_dot_products_are_fast(isa):
    assert isa == "avx512" or not int16_products_are_fast(CPU)
    assert not int16_products_are_fast(torch.device("meta"))


def test_sides_that_do_not_fit_are_refused():
    a, b = matrix(30, 60, 0), matrix(60, 20, 0)
    bad = [
        (a, packed_right(b[:59])),  # padded to as many numbers as 60
        (packed_left(a[:, :59]), b),
        (packed_right(a), b),
        (packed_right(a), packed_left(b)),
        (a, b[0]),
        (a[None], b),
    ]
    for left, right in bad:
        with pytest.raises(ValueError, match="int16_product"):
            int16_product(left, right)


def test_strides_of_single_rows_and_negated_views():
    a, b = matrix(8, 2, 0)[::2, ::2], matrix(2, 40, 0)[::2, ::2]
    assert a.stride() == (4, 2)
    torch.testing.assert_close(int16_product(a, b), a @ b, rtol=1e-4, atol=1e-4)
    a, b = matrix(1, 60, 0), matrix(60, 3, 0)
    for x in (torch._neg_view(a), packed_left(torch._neg_view(a))):
        assert torch.equal(int16_product(x, b), -int16_product(a, b))


@pytest.mark.parametrize("depth", [-7, 2**61, 2**63 - 1])
def test_sizes_that_overflow_are_refused(depth):
    out, numbers = torch.zeros(3, 2), torch.zeros(640)
    with pytest.raises(ValueError, match="int16_product"):
        _native.call("int16_product", CPU, numbers, numbers, None, out, numbers, depth, False)
    for sizes in ((depth, 5), (5, depth)):
        with pytest.raises(ValueError, match="int16_product"):
            _native.call("int16_side_size", CPU, True, *sizes)
