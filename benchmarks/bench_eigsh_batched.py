"""eigsh of 64 networks or matrices at once, and of a small one, against one call after the other.

``CATAPULT_EARLIER=FOLDER`` names a folder with an earlier build of the package: the same problems
are then solved by it, one by one, in a second process that answers between our calls.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

KERNELS = ("outlier", "gap")
SIZES = (128, 512)
WIDTHS = (64, 128)
SMALL = (("operator", 64), ("tensor", 128), ("tensor", 512))
GAP = 1e-2


def matrices(kind: str, n: int, count: int) -> torch.Tensor:
    """Symmetric (count, n, n): a bulk and one outlier that grows with n, or a gap of a hundredth.

    The outlier is that of a kernel whose entries have a mean: a quarter of n over a bulk below 3.
    """
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, n, 2 * n, generator=g, dtype=torch.float64)
    if kind == "outlier":
        return x @ x.mT / (2 * n) + 0.25
    q = torch.linalg.qr(x[:, :, :n])[0]
    e = 0.9 * torch.rand(count, n, generator=g, dtype=torch.float64)
    e[:, 0], e[:, 1] = 1.0, 1.0 - GAP
    a = (q * e[:, None]) @ q.mT
    return (a + a.mT) / 2


def networks(width: int, count: int) -> tuple[list[torch.nn.Module], Any]:
    """MLPs 64-width x 3-10 of different seeds, and as many digits as they are wide."""
    import catapult_ext as cx

    nets = [cx.models.fully_connected(64, 10, width=width, depth=3, seed=s) for s in range(count)]
    return nets, cx.data.digits(train=width).train


def one_by_one(problem: str, size: int, count: int) -> Callable[[], Any]:
    """A call that solves ``count`` problems one after the other, in any build of the package."""
    import catapult_ext as cx

    if problem in KERNELS:
        a = matrices(problem, size, count)
        return lambda: [cx.eigsh(one) for one in a]
    if problem == "tensor":
        one = matrices("outlier", size, 1)[0]
        return lambda: [cx.eigsh(one)]
    nets, data = networks(size, count)
    if problem == "operator":
        operator = cx.GGN(nets[0], "half_mse", data)
        return lambda: [cx.eigsh(operator)]
    return lambda: [cx.eigsh(cx.GGN(net, "half_mse", data)) for net in nets]


class Earlier:
    """The same problem in an earlier build: a process that solves it whenever it is called."""

    def __init__(self, folder: str, *problem: Any) -> None:
        command = [sys.executable, __file__, *map(str, problem)]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self) -> None:
        """Solve there, and wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError("the earlier build has ended")


def serve(problem: str, size: str, count: str) -> None:
    """Solve once for each line of the input."""
    call = one_by_one(problem, int(size), int(count))
    for _ in sys.stdin:
        call()
        print("done", flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
else:
    import pytest
    from harness import Case

    import catapult_ext as cx

    def baselines(problem: str, size: int, count: int) -> dict[str, Callable[[], Any]]:
        folder = os.environ.get("CATAPULT_EARLIER")
        if folder:
            return {"earlier build": Earlier(folder, problem, size, count)}
        return {"one by one": one_by_one(problem, size, count)}

    @pytest.mark.parametrize("width", WIDTHS)
    def test_top_ggn_eigenvalues_of_networks(measure, quick, width):
        count = 4 if quick else 64
        nets, data = networks(width, count)

        def check():
            found = cx.eigsh(cx.GGN(nets, "half_mse", data))
            singles = one_by_one("networks", width, 4)()
            found = [found[r] for r in range(4)]
            for batched, single in zip(found, singles, strict=True):
                assert batched.converged
                apart = (batched.eigenvalues - single.eigenvalues).abs()
                assert (apart <= batched.errors + single.errors).all()
                assert (batched.errors <= 1.5 * single.errors).all()

        measure(
            Case(
                ours=lambda: cx.eigsh(cx.GGN(nets, "half_mse", data)),
                baselines=baselines("networks", width, count),
                check=check,
                unit=("eigenvalues", count),
                target={"earlier build": {64: 12.0, 128: 3.5}[width]},
            )
        )

    @pytest.mark.parametrize("n", SIZES)
    @pytest.mark.parametrize("kind", KERNELS)
    def test_top_eigenvalues_of_kernels(measure, quick, kind, n):
        count = 4 if quick else 64
        a = matrices(kind, n, count)

        def check():
            found = cx.eigsh(a)
            exact = torch.linalg.eigvalsh(a)[:, -1:]
            assert set(found.index_check) == {"inertia"}
            assert ((found.eigenvalues - exact).abs() <= found.errors).all()

        measure(
            Case(
                ours=lambda: cx.eigsh(a),
                baselines=baselines(kind, n, count),
                check=check,
                unit=("matrices", count),
                target={"earlier build": {128: 100.0, 512: 8.0}[n]},
            )
        )

    @pytest.mark.parametrize(("problem", "size"), SMALL)
    def test_a_small_one(measure, problem, size):
        ours = one_by_one(problem, size, 1)

        def check():
            (found,) = ours()
            assert found.converged

        folder = os.environ.get("CATAPULT_EARLIER")
        others = {"earlier build": Earlier(folder, problem, size, 1)} if folder else {}
        measure(Case(ours=ours, baselines=others, check=check, target={"earlier build": 2.0}))
