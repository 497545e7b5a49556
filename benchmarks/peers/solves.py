"""Rows: kernel ridge regression with the NTK of Fashion-MNIST, solved in memory and by products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import Contender, Row, ladder
from torch import Tensor

import catapult_ext as cx

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
ALLOWED = 1e-3


class Counted:
    """A SciPy operator that counts its products."""

    def __init__(self, multiply: Callable[[np.ndarray], np.ndarray], n: int) -> None:
        from scipy.sparse.linalg import LinearOperator

        self.count = 0

        def product(v: np.ndarray) -> np.ndarray:
            self.count += 1
            return multiply(v)

        self.operator = LinearOperator((n, n), matvec=product, dtype=np.float32)


def _problem(samples: int, columns: int) -> tuple[cx.NTK, Tensor, Tensor, float, Tensor]:
    """The kernel as an operator and in memory, targets, the ridge, and the exact solution."""
    data = cx.data.named("fashion-mnist", train=samples, test=1)
    model = cx.models.fully_connected(
        784, 1, width=512, depth=3, parameterisation="standard", seed=0
    )
    kernel = cx.NTK(model, data.x_train.flatten(1))
    matrix, y = kernel.dense(), data.y_train[:, :columns].contiguous()
    ridge = 1e-4 * cx.eigsh(matrix, tol=1e-6).eigenvalues.item()
    whole = matrix.double()
    whole.diagonal().add_(ridge)
    exact = torch.linalg.solve(whole, y.double())
    return kernel, matrix, y, ridge, exact


def _error(exact: Tensor) -> Callable[[int, Any], float]:
    """Largest relative error of a column."""

    def error(_: int, got: Any) -> float:
        got = torch.as_tensor(got).double().reshape(exact.shape)
        return float(((got - exact).norm(dim=0) / exact.norm(dim=0)).max())

    return error


def _ours(a: Any, y: Tensor, ridge: float, name: str, **options: Any) -> Contender:
    held: dict[str, int] = {}

    def call(tol: float) -> Callable[[int], Tensor]:
        def run(_: int) -> Tensor:
            found = cx.solve(a, y, shift=ridge, tol=tol, **options)
            held["products"] = found.matvecs
            return found.x

        return run

    return Contender(name, ladder(TOLERANCES, call), lambda: held["products"], ours=True)


def _scipy_cg(counted: Counted, y: Tensor, ridge: float) -> Contender:
    """Column by column, as scipy.sparse.linalg.cg solves."""
    from scipy.sparse.linalg import LinearOperator, cg

    n = len(y)
    shifted = LinearOperator(
        (n, n), matvec=lambda v: counted.operator.matvec(v) + ridge * v, dtype=np.float32
    )

    def call(tol: float) -> Callable[[int], np.ndarray]:
        def run(_: int) -> np.ndarray:
            counted.count = 0
            return np.stack([cg(shifted, c.numpy(), rtol=tol, maxiter=5000)[0] for c in y.T], 1)

        return run

    return Contender("scipy cg", ladder(TOLERANCES, call), lambda: counted.count)


def _gpytorch(matrix: Tensor, y: Tensor, ridge: float) -> Contender:
    """Its conjugate gradients with its pivoted Cholesky preconditioner of rank 100."""
    import gpytorch
    from linear_operator import to_linear_operator

    def call(tol: float) -> Callable[[int], Tensor]:
        def run(_: int) -> Tensor:
            settings = gpytorch.settings
            with (
                settings.max_cholesky_size(1),
                settings.cg_tolerance(tol),
                settings.max_cg_iterations(5000),
                settings.max_preconditioner_size(100),
                settings.min_preconditioning_size(1),
            ):
                return to_linear_operator(matrix).add_jitter(ridge).solve(y)

        return run

    return Contender("GPyTorch, CG", ladder(TOLERANCES, call))


def _kernel_ridge(matrix: Tensor, y: Tensor, ridge: float) -> Contender:
    from sklearn.kernel_ridge import KernelRidge

    def run(_: int) -> np.ndarray:
        model = KernelRidge(alpha=ridge, kernel="precomputed")
        return model.fit(matrix.numpy(), y.numpy()).dual_coef_

    return Contender("scikit-learn KernelRidge, precomputed", {"": run})


def solve_in_memory(samples: int = 3000, columns: int = 10) -> Row:
    """Ten targets, the kernel in memory."""
    _, matrix, y, ridge, exact = _problem(samples, columns)

    def lapack(_: int) -> Tensor:
        whole = matrix.double()
        whole.diagonal().add_(ridge)
        return torch.cholesky_solve(y.double(), torch.linalg.cholesky(whole))

    known = {"lower": -1.0}  # rounding of a float32 kernel whose top is 1e6
    contenders = [
        _ours(matrix, y, ridge, "catapult_ext, Cholesky, proved bound", method="cholesky"),
        _ours(
            matrix, y, ridge, "catapult_ext, Cholesky, bound given", method="cholesky", lower=-1.0
        ),
        _ours(matrix, y, ridge, "catapult_ext, CG, rank 200", method="cg", **known),
        _kernel_ridge(matrix, y, ridge),
        Contender("torch Cholesky in float64", {"": lapack}),
        _scipy_cg(Counted(lambda v: matrix.numpy() @ v, samples), y, ridge),
    ]
    try:
        contenders.append(_gpytorch(matrix, y, ridge))
    except ImportError:
        contenders.append(Contender("GPyTorch, CG", {"": lambda _: 1 / 0}))
    words = f"(K + 1e-4 top) x = y, K in memory, float32, N = {samples}, {columns} targets"
    return Row("solve-memory", words, contenders, _error(exact), ALLOWED)


def solve_by_products(samples: int = 600, columns: int = 4) -> Row:
    """Ten targets, the kernel known by its products alone."""
    kernel, matrix, y, ridge, exact = _problem(samples, columns)
    factor = cx.pivoted_cholesky(matrix, 100)

    def multiply(v: np.ndarray) -> np.ndarray:
        return (kernel @ torch.from_numpy(np.ascontiguousarray(v, np.float32))).numpy()

    contenders = [
        _ours(kernel, y, ridge, "catapult_ext, block CG"),
        _ours(kernel, y, ridge, "catapult_ext, block CG, rank 100", preconditioner=100),
        _ours(kernel, y, ridge, "catapult_ext, block CG, a factor at hand", preconditioner=factor),
        _scipy_cg(Counted(multiply, samples), y, ridge),
    ]
    words = f"(K + 1e-4 top) x = y, K by products, float32, N = {samples}, {columns} targets"
    return Row("solve-products", words, contenders, _error(exact), ALLOWED)


ROWS = {"solve-memory": solve_in_memory, "solve-products": solve_by_products}
