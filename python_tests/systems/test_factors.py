"""Cholesky factors in memory and in files, pivoted factors, and leave-one-out errors."""

import json
import os

import numpy as np
import pytest
import torch
from systems.test_solve import with_condition

import catapult_ext as cx
from catapult_ext.linops import KernelFileError
from catapult_ext.systems import factor as in_memory
from catapult_ext.systems import tiled

F64 = torch.float64


@pytest.fixture(scope="module")
def matrix():
    return with_condition(70, 1e4, 5)


def test_a_factor(matrix, monkeypatch):
    monkeypatch.setattr(in_memory, "_PANEL", 16)  # ragged panels
    factor = cx.cholesky(matrix, shift=1e-3)
    whole = matrix + 1e-3 * torch.eye(70, dtype=F64)
    torch.testing.assert_close(factor.lower @ factor.lower.T, whole, rtol=1e-12, atol=1e-14)
    b = torch.randn(70, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(factor.solve(b).x, torch.linalg.solve(whole, b))
    torch.testing.assert_close(factor.inverse_diagonal(), torch.linalg.inv(whole).diagonal())
    assert factor.logdet() == pytest.approx(torch.logdet(whole).item(), rel=1e-12)
    smallest = torch.linalg.eigvalsh(whole)[0].item()
    assert 0.2 * smallest <= factor.least <= smallest


@pytest.mark.parametrize("full", [True, False])
def test_leave_one_out(matrix, full):
    """Against regressions that do leave each sample out."""
    shift = 1e-2
    pivoted = cx.pivoted_cholesky(matrix, 20)
    kernel = matrix if full else pivoted.factor @ pivoted.factor.T
    y = torch.randn(70, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(y)
    for i in range(70):
        rest = [j for j in range(70) if j != i]
        k = kernel[rest][:, rest] + shift * torch.eye(69, dtype=F64)
        expected[i] = kernel[i, rest] @ torch.linalg.solve(k, y[rest])
    if full:
        found = cx.leave_one_out(cx.cholesky(matrix, shift=shift), y)
    else:
        found = cx.leave_one_out(pivoted, y, shift=shift)
    torch.testing.assert_close(found.predictions, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.mean_squares, (y - expected).square().mean(0))
    y[3, 0] = torch.nan
    again = cx.leave_one_out(cx.cholesky(matrix, shift=shift), y)
    assert again.errors.isnan().all(0).tolist() == [True, False]
    assert "leave-one-out of 70 samples" in repr(again)


def test_leave_one_out_refuses(matrix):
    factor, pivoted = cx.cholesky(matrix), cx.pivoted_cholesky(matrix, 5)
    y = torch.ones(70, dtype=F64)
    for arguments, options, message in (
        ((matrix, y), {}, "factor must be of cx.cholesky or cx.pivoted_cholesky"),
        ((factor, y[:5]), {}, r"y must be \(70,\) or \(70, K\)"),
        ((factor, y), {"shift": 0.1}, "the factor has its own"),
        ((pivoted, y), {}, "shift must be > 0"),
    ):
        with pytest.raises(
            (TypeError, ValueError), match=rf"catapult_ext\.leave_one_out: .*{message}"
        ):
            cx.leave_one_out(*arguments, **options)


def test_pivoted_factors(matrix):
    found = cx.pivoted_cholesky(matrix, 30, seed=1)
    rest = matrix - found.factor @ found.factor.T
    assert found.left == pytest.approx(rest.trace().item(), rel=1e-6, abs=1e-12)
    assert torch.linalg.eigvalsh(rest)[0] > -1e-12
    # about as good as the eigenvectors of the same rank
    assert found.left < 30 * torch.linalg.eigvalsh(matrix)[:-30].sum()
    same = cx.pivoted_cholesky(matrix, 30, seed=1)
    assert torch.equal(found.factor, same.factor)
    exact = cx.pivoted_cholesky(torch.ones(9, 9), 5)
    assert exact.factor.shape == (9, 1)
    assert cx.pivoted_cholesky(matrix, 70, tol=0.1).left <= 0.1 * matrix.trace()
    with pytest.raises(ValueError, match="must be positive semi-definite"):
        cx.pivoted_cholesky(-matrix, 3)


def stop_at(count):
    def stop(done, panels):
        if done == count:
            raise KeyboardInterrupt

    return stop


def test_a_factor_in_a_file(matrix, tmp_path, monkeypatch):
    """Interrupted, it goes on where it stopped; finished, it is only opened."""
    monkeypatch.setattr(tiled, "_PANEL_BYTES", 8 * 70 * 16)
    file, seen = tmp_path / "factor.npy", []
    with pytest.raises(KeyboardInterrupt):
        cx.cholesky(matrix, shift=1e-3, file=file, progress=stop_at(2))
    factor = cx.cholesky(matrix, shift=1e-3, file=file, progress=lambda *p: seen.append(p))
    assert seen == [(2, 5), (3, 5), (4, 5), (5, 5)]
    torch.testing.assert_close(factor.lower, cx.cholesky(matrix, shift=1e-3).lower)
    monkeypatch.setattr(tiled, "_panel", None)
    b = torch.randn(70, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    again = cx.cholesky(matrix, shift=1e-3, file=file, lower=0.0)
    found = cx.solve(again, b)
    assert found.bound == "given"
    assert (
        (found.x - torch.linalg.solve(matrix + 1e-3 * torch.eye(70, dtype=F64), b))
        .norm(dim=0)
        .le(found.errors)
        .all()
    )
    assert np.array_equal(np.load(file), again.lower.numpy())


def test_files_of_another_factor_are_refused(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr(tiled, "_PANEL_BYTES", 8 * 70 * 16)
    file = tmp_path / "factor.npy"
    cx.cholesky(matrix, shift=1e-3, file=file)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    other = matrix.clone()
    other[0, 0] += 1e-9
    for a, options, what in (
        (matrix, {"shift": 2e-3}, "shift"),
        (other, {"shift": 1e-3}, "matrix"),
        (matrix, {"shift": 1e-3, "dtype": torch.float32}, "layout"),
    ):
        with pytest.raises(
            KernelFileError, match=rf"catapult_ext\.cholesky: .*differing in {what}"
        ):
            cx.cholesky(a, file=file, **options)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_panel_that_was_changed_is_seen(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr(tiled, "_PANEL_BYTES", 8 * 70 * 16)
    file = tmp_path / "factor.npy"
    with pytest.raises(KeyboardInterrupt):
        cx.cholesky(matrix, shift=1e-3, file=file, progress=stop_at(2))
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    with pytest.raises(KernelFileError, match="rows from 0 differ from their checksum"):
        cx.cholesky(matrix, shift=1e-3, file=file)


def test_a_full_disk(matrix, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(KernelFileError, match=r"catapult_ext\.cholesky: .*No space left"):
        cx.cholesky(matrix, shift=1e-3, file=tmp_path / "f.npy")
    monkeypatch.undo()
    cx.cholesky(matrix, shift=1e-3, file=tmp_path / "f.npy")
    assert json.loads((tmp_path / "f.npy.json").read_text())["record"]["complete"]


def test_a_matrix_that_is_not_definite_loses_nothing(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr(tiled, "_PANEL_BYTES", 8 * 70 * 16)
    bad = matrix.clone()
    bad[60, 60] = -1
    with pytest.raises(ValueError, match="a pivot <= 0 in row 60"):
        cx.cholesky(bad, file=tmp_path / "f.npy")
    assert json.loads((tmp_path / "f.npy.json").read_text())["record"]["done"] == 3
