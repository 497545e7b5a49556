#!/usr/bin/env python3
"""Does an installed wheel work where only torch and numpy are?

Usage: tools/wheel_check.py [--cuda-missing]. It tries the import, every op, operators and eigsh.
Run it outside the checkout, in an environment without compiler, pytest or anything optional. With
--cuda-missing the wheel must have been built without CUDA and say so when asked for it.
"""

import importlib.metadata
import re
import sys
import sysconfig
from pathlib import Path

import torch

import catapult_ext as cx
from catapult_ext import ops, reference

folder = Path(cx.__file__).resolve().parent
assert "site-packages" in folder.parts, f"this is a checkout, not an installed wheel: {folder}"
assert (folder / "py.typed").exists()
assert (folder / "_C.pyi").exists()
assert cx.__version__ == importlib.metadata.version("catapult_ext")

generator = torch.Generator().manual_seed(0)
tried = set()


def randn(*shape):
    """Float64 numbers from one stream."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def close(name, ours, oracle):
    """Compare one result, or a tuple of them, with the plain torch reference."""
    ours, oracle = (r if isinstance(r, tuple) else (r,) for r in (ours, oracle))
    for left, right in zip(ours, oracle, strict=True):
        scale = max(1.0, float(right.double().abs().max()))
        assert float((left.double() - right.double()).abs().max()) < 1e-9 * scale, name
    tried.add(name)
    print(f"{name}: agrees with the reference")


alpha, beta = randn(3, 6), randn(3, 5)
close("tridiag_eigh", ops.tridiag_eigh(alpha, beta)[0], reference.tridiag_eigh(alpha, beta)[0])
a, g = [randn(5, 4), randn(5, 6)], [randn(5, 2, 6), randn(5, 2, 3)]
factors = {"scale": [1.0, 0.5], "bias": [1.0, 0.0]}
close("gram", ops.gram(a, g, **factors), reference.gram(a, g, **factors))
chain = {
    "weights": [randn(1, 6, 4), randn(1, 2, 6)],
    "inputs": [randn(1, 5, 4), randn(1, 5, 6)],
    "slopes": [randn(1, 5, 6)],
    **factors,
}
v = randn(1, 10, 3)
close("ntk_matvec", ops.ntk_matvec(v, **chain), reference.ntk_matvec(v, **chain))
matrix = randn(2, 30, 30)
matrix = matrix @ matrix.mT
top = ops.lanczos_dense(matrix, 2, tol=1e-12)
close("lanczos_dense", top.eigenvalues, torch.linalg.eigvalsh(matrix).flip(1)[:, :2])

basis = [torch.zeros(1, 3, 9, dtype=torch.float64) for _ in range(2)]
for rows in basis:
    rows[0, 0, 0] = 1.0
short = [[torch.zeros(1, 2, dtype=torch.float64) for _ in range(2)] for _ in basis]
w = randn(1, 9)
for module, rows, pair in zip((ops, reference), basis, short, strict=True):
    module.lanczos_step(rows, *pair, w, 0)
close("lanczos_step", (basis[0], *short[0]), (basis[1], *short[1]))

x, y, eta = randn(4, 3), randn(4), torch.tensor([0.1, 0.3], dtype=torch.float64)
U, u = randn(2, 16, 3), randn(2, 16)
close(
    "toy_gd",
    ops.toy_gd(U.clone(), u.clone(), x, y, eta, 20).loss,
    reference.toy_gd(U.clone(), u.clone(), x, y, eta, 20)[0],
)
state = [torch.einsum("rwd,rw->rd", U, u), U.mT @ U, (u * u).sum(1)]
close(
    "toy_gd_reduced",
    ops.toy_gd_reduced(*[s.clone() for s in state], x, y, eta, 16.0, 20).loss,
    reference.toy_gd_reduced(*[s.clone() for s in state], x, y, eta, 16.0, 20)[0],
)
noisy = [torch.tensor(t).double() for t in ([1.5, 2.0], [0.5, 1.0], [0.0, 0.9])]
close("toy_lyapunov", ops.toy_lyapunov(*noisy, 40), reference.toy_lyapunov(*noisy, 40))
h, k = torch.tensor([1.2, 1.6]).double(), torch.tensor([0.01, -0.02]).double()
close("toy_scalar", ops.toy_scalar(h, k, 30).h, reference.toy_scalar(h, k, 30)[0])
public = {name for name in ops.__all__ if name.islower()}
assert tried == public, f"tried {sorted(tried)}, but the ops are {sorted(public)}"

model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
data = (x, randn(4, 2))
for operator in (cx.NTK(model, x), cx.GGN(model, "half_mse", data)):
    dense = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    found, exact = cx.eigsh(operator, k=1, tol=1e-8), torch.linalg.eigvalsh(dense)[-1]
    assert abs(float(found.eigenvalues[0] / exact) - 1) < 1e-7, (found, exact)
found = cx.eigsh(torch.diag(torch.arange(1.0, 41.0)), k=2)
assert abs(float(found.eigenvalues[0]) - 40) < 0.05, found
print("NTK, GGN, eigsh:", found.eigenvalues.tolist())

assert sys.argv[1:] in ([], ["--cuda-missing"]), sys.argv[1:]
if sys.argv[1:]:
    assert not cx.build_info()["cuda"]
    out = [torch.empty(1, 3) for _ in range(3)]
    try:
        cx._native._C.tridiag_eigh(torch.ones(1, 3), torch.ones(1, 2), *out, 0, 0, 1)
    except RuntimeError as error:
        assert "was built without CUDA" in str(error), error
    else:
        raise AssertionError("a CUDA call went through in a build without CUDA")
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    assert not sys._is_gil_enabled(), "importing catapult_ext switched the global lock on"
maps = Path("/proc/self/maps")
if maps.exists():
    runtimes = set(re.findall(r"\S*lib(?:g|i)?omp5?[.-]\S*", maps.read_text()))
    assert len(runtimes) <= 1, f"two OpenMP runtimes: {runtimes}"
print(f"catapult_ext {cx.__version__} works with torch {torch.__version__}")
