"""Rows: lambda_max of NTK, GGN and Hessian at equal true error, tracking, spectral density."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse.linalg as sl
import torch
from problems import as_double, cached, hessian_product, mlp, ntk_product, top
from timing import Contender, Row, ladder
from torch import Tensor, nn

import catapult_ext as cx

LOSS = nn.MSELoss()
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
SEEDS = 5


class Counted:
    """A SciPy operator that counts columns."""

    def __init__(self, n: int, product: Callable[[Any], Any], dtype: Any = np.float32) -> None:
        self.count, self._product = 0, product
        self.operator = sl.LinearOperator((n, n), self._one, matmat=self._block, dtype=dtype)

    def _one(self, v: Any) -> Any:
        self.count += 1
        return self._product(v.reshape(-1, 1)).reshape(-1)

    def _block(self, v: Any) -> Any:
        self.count += v.shape[1]
        return self._product(v)


class Solver:
    """SciPy's eigsh or lobpcg for an operator made anew at each call, with its product count."""

    def __init__(self, make: Callable[[int], tuple[int, Callable[[Any], Any]]], method: str):
        self.make, self.method, self.products = make, method, 0
        self.start: Any = None

    def at(self, tol: float) -> Callable[[int], float]:
        """The call at a tolerance (lobpcg: of the residual over the eigenvalue)."""

        def call(case: int) -> float:
            n, product = self.make(case)
            counted = Counted(n, product)
            value = self.solve(counted, n, case, tol)
            self.products = counted.count
            return value

        return call

    def solve(self, counted: Counted, n: int, case: int, tol: float) -> float:
        """Largest eigenvalue; keeps its vector in ``start``."""
        first = self.start
        if first is None:
            first = np.random.default_rng(case).standard_normal((n, 1)).astype(np.float32)
        if self.method == "eigsh":
            value, vector = sl.eigsh(counted.operator, 1, which="LA", tol=tol, v0=first[:, 0])
        else:
            size = float(np.linalg.norm(counted.operator.matmat(first)) / np.linalg.norm(first))
            with np.errstate(all="ignore"):
                value, vector = sl.lobpcg(
                    counted.operator, first, tol=tol**0.5 * size, maxiter=200, largest=True
                )
        self.last = vector.astype(np.float32)
        return float(value[0])


def numpy_product(product: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """A torch product (n, K) -> (n, K) for SciPy."""

    def call(v: Any) -> Any:
        return product(torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32))).numpy()

    return call


def scipy_pair(name: str, make: Callable[[int], tuple[int, Callable[[Any], Any]]]) -> list:
    """Eigsh and lobpcg on the same operator."""
    out = []
    for method in ("eigsh", "lobpcg"):
        solver = Solver(make, method)
        calls = ladder(TOLERANCES, solver.at)
        title = f"{name} + SciPy {method}"
        out.append(Contender(title, calls, products=lambda s=solver: s.products))
    return out


class Ours:
    """cx.eigsh of an operator made anew at each call."""

    def __init__(self, operator: Callable[[int], Any], **options: Any) -> None:
        self.operator, self.options, self.products = operator, options, 0

    def at(self, tol: float) -> Callable[[int], float]:
        """The call at a tolerance."""

        def call(case: int) -> float:
            found = cx.eigsh(self.operator(case), tol=tol, seed=case, **self.options)
            self.products = found.matvecs
            return float(found.eigenvalues[0])

        return call


def ours(operator: Callable[[int], Any]) -> list[Contender]:
    """At the defaults, and on the peers' terms: no index check, the loosest tolerance that does."""
    checked, plain = Ours(operator), Ours(operator, confidence=None)
    return [
        Contender("catapult_ext", ladder([1e-3], checked.at), lambda: checked.products, ours=True),
        Contender(
            "catapult_ext, no index check",
            ladder(TOLERANCES, plain.at),
            lambda: plain.products,
        ),
    ]


def eigenthings(make: Callable[[int], Any], name: str) -> Contender:
    """hessian-eigenthings' Lanczos, its iterations counted."""
    from hessian_eigenthings import lanczos

    seen = {"products": 0}

    def at(tol: float) -> Callable[[int], float]:
        def call(case: int) -> float:
            found = lanczos(make(case), k=1, max_iter=100, tol=tol, which="LA", seed=case)
            seen["products"] = found.iterations
            return float(found.eigenvalues[0])

        return call

    return Contender(name, ladder(TOLERANCES, at), products=lambda: seen["products"])


def _problem() -> tuple[list[nn.Module], Tensor, Tensor]:
    x, y = cx.data.digits(size=28).train
    return [mlp(10, seed=s) for s in range(SEEDS)], x, y


def _ntk_tops(models: list[nn.Module], x: Tensor) -> list[float]:
    """Largest eigenvalues of the kernels; the GGN's of a squared loss follow by its factor."""
    n = len(x) * 10
    return cached("ntk", lambda: [top(n, ntk_product(as_double(m), x.double())) for m in models])


def _relative(exact: list[float]) -> Callable[[int, Any], float]:
    return lambda case, got: abs(float(got) - exact[case]) / exact[case]


def lambda_ntk() -> Row:
    """Top eigenvalue of the kernel."""
    models, x, _ = _problem()
    n = len(x) * 10
    exact = _ntk_tops(models, x)

    def functional(case: int) -> tuple[int, Callable[[Any], Any]]:
        return n, numpy_product(ntk_product(models[case], x))

    def linearised(case: int) -> tuple[int, Callable[[Any], Any]]:
        params = {k: p.detach() for k, p in models[case].named_parameters()}

        def f(p: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(models[case], p, (x,))

        _, forth = torch.func.linearize(f, params)
        _, back = torch.func.vjp(f, params)

        def product(v: Tensor) -> Tensor:
            columns = [forth(back(u.reshape(len(x), 10))[0]).reshape(-1) for u in v.T]
            return torch.stack(columns, 1)

        return n, numpy_product(product)

    entries = ours(lambda case: cx.NTK(models[case], x))
    entries += scipy_pair("torch.func vjp + jvp", functional)
    entries += scipy_pair("torch.func linearize + vjp", linearised)[:1]
    words = "lambda_max of the NTK, MLP 784-512x3-10, N = 512 digits"
    return Row("lambda-ntk", words, entries, _relative(exact), 1e-3, SEEDS)


def lambda_ggn() -> Row:
    """Top eigenvalue of the Gauss-Newton matrix."""
    from curvlinops import GGNLinearOperator
    from hessian_eigenthings import GGNOperator, supervised_forward, supervised_loss_of_output

    models, x, y = _problem()
    factor = 2 / (len(x) * 10)  # of MSELoss
    exact = [factor * value for value in _ntk_tops(models, x)]

    def peer(case: int) -> tuple[int, Callable[[Any], Any]]:
        weights = list(models[case].parameters())
        a = GGNLinearOperator(
            models[case], LOSS, weights, [(x, y)], check_deterministic=False
        ).to_scipy()
        return a.shape[0], lambda v: a @ v

    def things(case: int) -> Any:
        output_loss = supervised_loss_of_output(LOSS)
        return GGNOperator(models[case], [(x, y)], supervised_forward, output_loss)

    entries = ours(lambda case: cx.GGN(models[case], LOSS, (x, y)))
    entries += scipy_pair("curvlinops 3.0.1", peer)
    entries.append(eigenthings(things, "hessian-eigenthings 1.0.0a5 lanczos"))
    words = "lambda_max of the GGN, MSELoss, MLP 784-512x3-10, N = 512 digits"
    return Row("lambda-ggn", words, entries, _relative(exact), 1e-3, SEEDS)


def lambda_hessian() -> Row:
    """Top eigenvalue of the Hessian."""
    import pyhessian
    from curvlinops import HessianLinearOperator
    from hessian_eigenthings import HessianOperator, supervised_loss

    models, x, y = _problem()
    exact = cached(
        "hessian",
        lambda: [top(*hessian_product(as_double(m), x.double(), y.double(), LOSS)) for m in models],
    )

    def peer(case: int) -> tuple[int, Callable[[Any], Any]]:
        weights = list(models[case].parameters())
        a = HessianLinearOperator(
            models[case], LOSS, weights, [(x, y)], check_deterministic=False
        ).to_scipy()
        return a.shape[0], lambda v: a @ v

    def things(case: int) -> Any:
        return HessianOperator(models[case], [(x, y)], supervised_loss(LOSS))

    def power(tol: float) -> Callable[[int], float]:
        def call(case: int) -> float:
            torch.manual_seed(case)
            held = pyhessian.hessian(models[case], LOSS, data=(x, y), cuda=False)
            return float(held.eigenvalues(maxIter=1000, tol=tol, top_n=1)[0][0])

        return call

    entries = ours(lambda case: cx.Hessian(models[case], LOSS, (x, y)))
    entries += scipy_pair("curvlinops 3.0.1", peer)
    entries.append(eigenthings(things, "hessian-eigenthings 1.0.0a5 lanczos"))
    entries.append(Contender("pyhessian 0.1 power iteration", ladder(TOLERANCES[1:], power)))
    words = "lambda_max of the Hessian, MSELoss, MLP 784-512x3-10, N = 512 digits"
    notes = ["pyhessian's products are not counted (it does not report them)"]
    return Row("lambda-hessian", words, entries, _relative(exact), 1e-3, SEEDS, notes)


def tracking(states: int = 12) -> Row:
    """The GGN's top eigenvalue after every step of a catapult; one case is all states in order."""
    from curvlinops import GGNLinearOperator

    models, x, y = _problem()
    path = [models[0]]
    factor = 2 / (len(x) * 10)
    rate = 3.0 / (factor * _ntk_tops(models, x)[0])
    for _ in range(states - 1):
        moved = copy.deepcopy(path[-1])
        loss = LOSS(moved(x), y)
        for p, g in zip(
            moved.parameters(), torch.autograd.grad(loss, list(moved.parameters())), strict=True
        ):
            p.data -= rate * g
        path.append(moved)
    n = len(x) * 10
    tops = cached("path", lambda: [top(n, ntk_product(as_double(m), x.double())) for m in path])
    exact = [factor * value for value in tops]
    seen = {"ours": 0.0}

    def mine(_: int) -> list[float]:
        tracker, out, products = cx.TopTracker(k=1), [], 0
        for model in path:
            found = tracker.update(cx.GGN(model, LOSS, (x, y)))
            out.append(float(found.eigenvalues[0]))
            products += found.matvecs
        seen["ours"] = products / len(path)
        return out

    def peer(method: str, tol: float) -> Callable[[int], list[float]]:
        def call(_: int) -> list[float]:
            solver, out, products = Solver(lambda c: (0, lambda v: v), method), [], 0
            for model in path:
                weights = list(model.parameters())
                a = GGNLinearOperator(
                    model, LOSS, weights, [(x, y)], check_deterministic=False
                ).to_scipy()
                counted = Counted(a.shape[0], lambda v, a=a: a @ v)
                out.append(solver.solve(counted, a.shape[0], 0, tol))
                solver.start = solver.last
                products += counted.count
            seen[method] = products / len(path)
            return out

        return call

    entries = [Contender("catapult_ext", {"tol 0.001": mine}, lambda: seen["ours"], ours=True)]
    for method in ("eigsh", "lobpcg"):
        calls = ladder(TOLERANCES[1:], lambda tol, m=method: peer(m, tol))
        title = f"curvlinops 3.0.1 + SciPy {method} from the last vector"
        entries.append(Contender(title, calls, lambda m=method: seen[m]))

    def error(_: int, got: list[float]) -> float:
        return max(abs(a - b) / b for a, b in zip(got, exact, strict=True))

    words = f"GGN's lambda_max after each of {states} steps of a catapult (3/lambda), N = 512"
    return Row("tracking", words, entries, error, 1e-3, 1, ["products: mean per state"])


def density() -> Row:
    """Hessian of a small net: distance of the estimated distribution from the exact one."""
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos
    from hessian_eigenthings import HessianOperator, spectral_density, supervised_loss

    x, y = (t for t in cx.data.digits(train=256).train)
    model = mlp(10, width=32, inputs=64, depth=2)
    n, product = hessian_product(as_double(model), x.double(), y.double(), LOSS)
    columns = torch.eye(n, dtype=torch.float64)
    exact = torch.linalg.eigvalsh(torch.stack([product(c[:, None]) for c in columns], 1))
    width = float(exact[-1] - exact[0])
    steps, vectors = 48, 8

    def mine(_: int) -> tuple[Tensor, Tensor]:
        found = cx.spectral_density(cx.Hessian(model, LOSS, (x, y)), steps, vectors)
        return found.nodes.reshape(-1), found.weights.reshape(-1) / vectors

    def peer(_: int) -> tuple[Tensor, Tensor]:
        weights = list(model.parameters())
        torch.manual_seed(0)
        a = HessianLinearOperator(model, LOSS, weights, [(x, y)], check_deterministic=False)
        pairs = [fast_lanczos(a, steps) for _ in range(vectors)]
        nodes = torch.cat([p[0] for p in pairs])
        shares = torch.cat([p[1][0] ** 2 if p[1].dim() > 1 else p[1] for p in pairs])
        return nodes.double(), shares.double() / shares.sum()

    def things(_: int) -> tuple[Tensor, Tensor]:
        a = HessianOperator(model, [(x, y)], supervised_loss(LOSS))
        found = spectral_density(a, num_runs=vectors, lanczos_steps=steps, seed=0)
        return found.grid.double(), found.density.double() / found.density.double().sum()

    def error(_: int, found: tuple[Tensor, Tensor]) -> float:
        points = torch.cat([found[0].double(), exact])
        mass = torch.cat([found[1].double(), torch.full_like(exact, -1 / len(exact))])
        order = points.argsort()
        distance = (mass[order].cumsum(0)[:-1].abs() * points[order].diff()).sum()
        return float(distance) / width

    entries = [
        Contender("catapult_ext", {"": mine}, ours=True),
        Contender("curvlinops 3.0.1 fast_lanczos", {"": peer}),
        Contender("hessian-eigenthings 1.0.0a5 spectral_density", {"": things}),
    ]
    words = f"Hessian's spectral density, MLP 64-32x2-10, {steps} steps x {vectors} vectors"
    notes = ["error: Wasserstein-1 distance to the exact spectrum over its range"]
    notes.append("pyhessian 0.1 density() calls a function that torch has dropped")
    return Row("density", words, entries, error, 0.02, 1, notes)


ROWS = {
    "lambda-ntk": lambda_ntk,
    "lambda-ggn": lambda_ggn,
    "lambda-hessian": lambda_hessian,
    "tracking": tracking,
    "density": density,
}
