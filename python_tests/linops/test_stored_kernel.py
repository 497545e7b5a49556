"""Kernels read back from their files as operators: right products, each tile once, checked."""

import numpy as np
import pytest
import torch
from linops import zoo
from linops.test_kernel_file import small_tiles

import catapult_ext as cx
from catapult_ext.linops import KernelFileError
from catapult_ext.linops.explicit import stored_kernel

F64 = torch.float64


@pytest.fixture
def few_rows(monkeypatch):
    """Panels of a few rows each, that end inside tiles and at their ends."""
    monkeypatch.setattr(stored_kernel, "_PANEL_BYTES", 800)
    monkeypatch.setattr(stored_kernel, "_EXACT_BYTES", 400)


def written(tmp_path, monkeypatch, name="kinked", edge=3, **options):
    small_tiles(monkeypatch, edge)
    model, x = zoo.build(name)
    kernel = cx.NTK(model, torch.cat([x, x.flip(0) * 0.7, x * 1.3]))
    matrix = kernel.dense(file=tmp_path / "k.npy", **options)
    return kernel, matrix, cx.StoredKernel(tmp_path / "k.npy")


@pytest.mark.parametrize("name", ["kinked", "conv", "lstm"])
def test_products(name, few_rows, tmp_path, monkeypatch):
    _, matrix, stored = written(tmp_path, monkeypatch, name)
    n = len(matrix)
    v = torch.randn(n, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        torch.testing.assert_close(stored @ v, matrix @ v, rtol=1e-12, atol=1e-12)
    product, total = stored.exact_product(v)
    torch.testing.assert_close(product, matrix @ v, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, matrix.abs() @ v.abs(), rtol=1e-12, atol=1e-12)
    assert stored.passes == 3
    torch.testing.assert_close(stored.dense(), matrix, rtol=0, atol=0)
    torch.testing.assert_close(stored.diagonal(), matrix.diagonal(), rtol=0, atol=0)
    chosen = torch.tensor([n - 1, 0, 2])
    torch.testing.assert_close(stored.read_columns(chosen), matrix[:, chosen], rtol=0, atol=0)


@pytest.mark.parametrize("edge", [1, 2, 3, 7, 100])
def test_a_changed_entry_is_seen_wherever_it_is(edge, few_rows, tmp_path, monkeypatch):
    _, matrix, stored = written(tmp_path, monkeypatch, edge=edge)
    n = len(matrix)
    v = torch.ones(n, dtype=F64)
    stored @ v
    array = np.load(tmp_path / "k.npy", mmap_mode="r+")
    for i, j in ((0, 0), (n - 1, 0), (n - 1, n - 1), (n // 2, n // 2 - 1), (n - 1, n - 2)):
        held = array[i, j]
        array[i, j] = np.nextafter(held, np.inf)
        array.flush()
        with pytest.raises(KernelFileError, match="was changed after it was written"):
            cx.StoredKernel(tmp_path / "k.npy") @ v
        array[i, j] = held
        array.flush()
    cx.StoredKernel(tmp_path / "k.npy") @ v


def test_bfloat16(few_rows, tmp_path, monkeypatch):
    small_tiles(monkeypatch, 2)
    model, x = zoo.build("kinked")
    kernel = cx.NTK(model.float(), x.float())
    matrix = kernel.dense()
    got = kernel.dense(file=tmp_path / "k.npy", storage=torch.bfloat16)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, matrix.bfloat16())
    stored = cx.StoredKernel(tmp_path / "k.npy")
    v = torch.randn(len(matrix), 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stored @ v, matrix.bfloat16().float() @ v)
    assert np.load(tmp_path / "k.npy").dtype == np.uint16
    with pytest.raises(KernelFileError, match="differing in layout"):
        kernel.dense(file=tmp_path / "k.npy")
    with pytest.raises(ValueError, match="storage must be"):
        kernel.dense(storage=torch.bfloat16)


def test_eigenpairs_and_solves(tmp_path, monkeypatch):
    _, matrix, stored = written(tmp_path, monkeypatch)
    values, _ = cx.eigsh(stored, k=3)
    exact = torch.linalg.eigh(matrix)[0].flip(0)[:3]
    torch.testing.assert_close(values, exact, rtol=1e-3, atol=0)
    shift = 1e-2 * exact[0].item()
    b = torch.randn(len(matrix), 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    wanted = torch.linalg.solve(matrix + shift * torch.eye(len(matrix), dtype=F64), b)
    for found in (
        cx.solve(stored, b, shift=shift),
        cx.cholesky(stored, shift=shift, file=tmp_path / "factor.npy").solve(b),
    ):
        assert found.bound == "operator"
        assert found.converged
        assert ((found.x - wanted).norm(dim=0) <= found.errors + 1e-12).all()
    assert cx.solve(stored, b, shift=shift).matvecs > 0
    with pytest.raises(ValueError, match=r"catapult_ext\.solve: method='cholesky' needs a dense"):
        cx.solve(stored, b, shift=shift, method="cholesky")
    exact = torch.logdet(matrix + shift * torch.eye(len(matrix), dtype=F64)).item()
    estimate = cx.logdet(stored, shift=shift)
    assert abs(estimate.value.item() - exact) <= 4 * estimate.error.item()


def test_refused(tmp_path, monkeypatch):
    small_tiles(monkeypatch, 2)
    model, x = zoo.build("kinked")
    with pytest.raises(KernelFileError, match=r"catapult_ext\.StoredKernel: .*is missing"):
        cx.StoredKernel(tmp_path / "none.npy")
    with pytest.raises(TypeError, match="file must be a path"):
        cx.StoredKernel(3)
    cx.NTK(model, x, x[:2]).dense(file=tmp_path / "cross.npy")
    cx.NTK(model, x).dense("blocks", file=tmp_path / "blocks.npy")
    for name in ("cross", "blocks"):
        with pytest.raises(KernelFileError, match="holds no symmetric kernel"):
            cx.StoredKernel(tmp_path / f"{name}.npy")

    def stop(done, tiles):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cx.NTK(model, x).dense(file=tmp_path / "k.npy", progress=stop)
    with pytest.raises(KernelFileError, match="is not finished"):
        cx.StoredKernel(tmp_path / "k.npy")
    cx.cholesky(torch.eye(4), file=tmp_path / "factor.npy")
    with pytest.raises(KernelFileError, match="holds no symmetric kernel"):
        cx.StoredKernel(tmp_path / "factor.npy")
    np.save(tmp_path / "other.npy", np.eye(3))
    with pytest.raises(KernelFileError, match=r"has no other\.npy\.json"):
        cx.StoredKernel(tmp_path / "other.npy")
    cx.NTK(model, x).dense(file=tmp_path / "k.npy")
    with open(tmp_path / "k.npy", "r+b") as file:
        file.truncate(200)
    with pytest.raises(KernelFileError, match="truncated or damaged"):
        cx.StoredKernel(tmp_path / "k.npy")


def test_a_file_that_is_cut_during_a_product(tmp_path, monkeypatch):
    _, matrix, stored = written(tmp_path, monkeypatch)
    with open(tmp_path / "k.npy", "r+b") as file:
        file.truncate(200)
    with pytest.raises(KernelFileError, match="ends too early"):
        stored @ torch.ones(len(matrix), dtype=F64)
