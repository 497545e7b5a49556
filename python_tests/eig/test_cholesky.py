"""Bounds by Cholesky factors: rounding stays far below the margin, and no bound is too small."""

import pytest
import torch

import catapult_ext as cx
from catapult_ext.eig.replicas import cholesky
from catapult_ext.testing import spectra

NAMES = ("flat", "cluster_1e-4", "indefinite", "geometric", "triple")


@pytest.mark.parametrize("n", [1, 31, 32, 33, 128, 129, 200])
def test_a_matrix_is_definite_where_its_eigenvalues_are_positive(n, dtype):
    g = torch.Generator().manual_seed(n)
    q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
    e = torch.linspace(0.1, 1, n, dtype=torch.float64)
    below = e.clone()
    below[0] = -0.01
    a = torch.stack([(q * e) @ q.T, (q * below) @ q.T, (q * e) @ q.T, -torch.eye(n).double()])
    a = ((a + a.mT) / 2).to(dtype)
    a[2, 0, 0] = float("nan")
    assert cholesky.definite(a).tolist() == [True, False, False, False]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [60, 300, 1000])
def test_rounding_to_float32_is_far_below_the_margin(name, n):
    """The shift at which the factor of float32 ceases to exist is near the top eigenvalue."""
    a = spectra.matrix(name, torch.float64, n)
    top = torch.linalg.eigvalsh(a)[-1]
    unit = cholesky.margin(n, top + a.diagonal().abs().amax()).item()
    for share in (-1.0, -0.3, 0.3, 1.0):
        moved = (top + share * unit) * torch.eye(n, dtype=torch.float64) - a
        assert cholesky.definite(moved.float()[None]).item() == (share > 0), share


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("n", [60, 150, 300])
def test_proofs_hold_on_spectra_of_every_kind(n, k, dtype):
    for tol in (1e-2, 1e-3, 1e-6):
        a = torch.stack([spectra.matrix(s, dtype, n, seed=i) for i, s in enumerate(NAMES * 2)])
        found = cx.eigsh(a, k, tol=tol)
        exact = torch.linalg.eigh(a.double())[0].flip(1)[:, :k]
        slack = 1e-14 * a.double().abs().sum(2).amax(1)[:, None]
        miss = (found.eigenvalues.double() - exact).abs()
        assert (miss <= found.errors.double() + slack).all()
        assert found.converged.all()
        assert set(found.index_check) == {"inertia"}


def test_matrices_that_are_symmetric_to_rounding_are_taken(dtype):
    g = torch.Generator().manual_seed(0)
    a = torch.stack([spectra.matrix("flat", dtype, 60), spectra.matrix("geometric", dtype, 60)])
    skew = torch.randn(2, 60, 60, generator=g, dtype=dtype)
    near = a + 20 * torch.finfo(dtype).eps * a.abs().amax((1, 2), keepdim=True) * (
        skew - skew.mT
    ).clamp(-1, 1)
    found = cx.eigsh(near)
    mean = ((near + near.mT) / 2).double()
    exact = torch.linalg.eigvalsh(mean)[:, -1:]
    assert ((found.eigenvalues.double() - exact).abs() <= found.errors.double()).all()
