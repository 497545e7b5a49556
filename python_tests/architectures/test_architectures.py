"""Operators of networks from public packages against brute force in float64.

The default run takes about twenty of them where their packages are installed; the nightly run
installs the packages and takes all.
"""

import contextlib
import copy
import warnings

import pytest
import torch
from architectures import brute_force, catalogue
from user_models.fingerprint import changes, fingerprint

import catapult_ext as cx

ENTRIES = catalogue.load()
MANY = pytest.param
CASES = [
    MANY(e, id=e.name, marks=() if e.default else pytest.mark.nightly) for e in ENTRIES.values()
]
ABSENT = pytest.mark.skip(reason="none of the packages of the catalogue is installed")
PACKAGES = {
    "transformers", "vit_pytorch", "timm", "x_transformers", "peft", "torch_geometric",
    "torchdiffeq", "e3nn", "monai",
}  # fmt: skip


TOLERANCE = 1e-9  # float64 everywhere
LOW_TOLERANCE = 2e-4  # a network that computes in float32 inside, against float64


def relative(got, right):
    return float((got - right).norm() / right.norm().clamp(min=torch.finfo(right.dtype).tiny))


@pytest.mark.parametrize("entry", CASES or [MANY(None, id="none", marks=ABSENT)])
def test_network(entry):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages while they build and run
        _check(entry.build())


def _check(case):  # right numbers, and the model as it was
    case.model.double()
    case.inputs = brute_force.widened(case.inputs)
    plain = case.forward
    low = brute_force.computes_in_float32(lambda: plain(copy.deepcopy(case.model), case.inputs))

    def forward(model, x):
        with brute_force.Widened() if low else contextlib.nullcontext():
            return plain(model, x).double()

    case.forward = forward
    reference = brute_force.BruteForce(case)
    n, o = reference.shape
    rows, y = reference.jacobian(), reference.y
    u = torch.randn(n * o, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    v = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    before = fingerprint(case.model, case.inputs)

    kernel = cx.NTK(case.model, case.inputs, forward=forward)
    right = rows @ rows.T
    assert relative(kernel @ u, right @ u) < TOLERANCE
    assert relative(kernel.dense(), right) < TOLERANCE
    assert relative(kernel.diagonal(), right.diagonal()) < TOLERANCE
    data = (case.inputs, y)
    ggn = cx.GGN(case.model, "half_mse", data, forward=forward)
    assert relative(ggn @ v, rows.T @ (rows @ v) / n) < TOLERANCE
    values = torch.linalg.eigvalsh(right).flip(0)[:2] / n
    _check_eigenvalues(ggn, values, TOLERANCE)
    if case.hessian:
        hessian = cx.Hessian(case.model, "half_mse", data, forward=forward)
        assert relative(hessian @ v, reference.hessian_product(v)) < TOLERANCE
    if low:  # as it is: right to the precision in which it computes
        low_ggn = cx.GGN(case.model, "half_mse", data, forward=lambda m, x: plain(m, x).double())
        assert relative(low_ggn @ v, rows.T @ (rows @ v) / n) < LOW_TOLERANCE
        _check_eigenvalues(low_ggn, values, LOW_TOLERANCE)
    assert changes(before, fingerprint(case.model, case.inputs)) == []
    copy.deepcopy(case.model)  # no graph was left in an attribute


def _check_eigenvalues(operator, values, tolerance):
    top = cx.eigsh(operator, 2, tol=1e-6)
    allowed = top.errors + tolerance * values[0]
    assert ((top.eigenvalues - values).abs() <= allowed).all(), (top, values)


@pytest.mark.nightly
def test_the_catalogue_is_whole():
    missing = {p for p in PACKAGES if not catalogue.installed(p)}
    assert not missing, f"install {sorted(missing)}: see .ci/nightly"
    assert len(ENTRIES) >= 150
    assert {e.package for e in ENTRIES.values()} == PACKAGES
    assert sum(e.default for e in ENTRIES.values()) >= 20
