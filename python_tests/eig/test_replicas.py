"""eigsh of R operators or matrices at once: each replica as if it were alone."""

import pytest
import torch

import catapult_ext as cx
from catapult_ext.eig.replicas import dense, lanczos
from catapult_ext.testing import pretended, spectra
from catapult_ext.testing.pretended import moved, pretended_cuda

needs_device = pytest.mark.skipif(
    bool(pretended.why_unavailable("cpu")), reason=pretended.why_unavailable("cpu")
)
WHICH = ("LA", "SA", "LM", "BE")
NAMES = ("cluster_1e-4", "triple", "indefinite", "geometric", "zero", "huge")


class Several:
    """Matrices (R, n, n) that show only shape, dtype, @ and replicas; counts what they multiply."""

    def __init__(self, a, counts=None, numbers=None):
        self._a, self.shape = a, tuple(a.shape)
        self.dtype, self.device = a.dtype, a.device
        self.counts = torch.zeros(len(a), dtype=torch.long) if counts is None else counts
        self.numbers = torch.arange(len(a)) if numbers is None else numbers

    def __matmul__(self, x):
        self.counts[self.numbers] += x.shape[2]
        return self._a @ x

    def replicas(self, index):
        return type(self)(self._a[index.to(self._a.device)], self.counts, self.numbers[index])


def batch(dtype, n=60, names=NAMES):
    return torch.stack([spectra.matrix(name, dtype, n, seed=i) for i, name in enumerate(names)])


def exact(a, which, k):
    e = torch.linalg.eigh(a.double())[0].flip(0)
    if which == "LM":
        return e[e.abs().argsort(descending=True, stable=True)[:k]].abs()
    top = {"LA": k, "SA": 0, "BE": (k + 1) // 2}[which]
    return torch.cat([e[:top], e[len(e) - (k - top) :]])


def check(found, r, a, which, k):
    got, true = found.eigenvalues[r].double(), exact(a, which, k)
    got = got.abs() if which == "LM" else got
    slack = 1e-14 * a.double().abs().sum(1).max()
    assert ((got - true).abs() <= found.errors[r].double() + slack).all(), r
    x = found.eigenvectors[r].double()
    rest = (a.double() @ x - x * found.eigenvalues[r].double()).norm(dim=0)
    rounding = 20 * torch.finfo(a.dtype).eps * a.double().abs().max() * len(a)
    assert (rest <= found.residuals[r].double() + rounding).all(), r
    torch.testing.assert_close(x.norm(dim=0), torch.ones(k, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["matrices", "operators"])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("k", [1, 3])
def test_each_replica_as_if_alone(kind, which, k, dtype):
    a = batch(dtype)
    given = a if kind == "matrices" else Several(a)
    found = cx.eigsh(given, k, which=which)
    assert found.eigenvalues.shape == found.errors.shape == found.residuals.shape == (len(a), k)
    assert found.eigenvectors.shape == (len(a), 60, k)
    assert found.eigenvalues.dtype == dtype
    assert found.converged.all()
    assert len(found) == len(a)
    for r, single in enumerate(a):
        check(found, r, single, which, k)
        alone = cx.eigsh(single if kind == "matrices" else spectra.Wrapped(single), k, which=which)
        assert found.index_check[r] == alone.index_check
        assert found[r].eigenvectors.shape == alone.eigenvectors.shape
        if kind == "operators":
            # a block that loses directions in float32 is solved again alone
            most = 2 * alone.matvecs + 3 * k if dtype == torch.float32 and k > 1 else 0
            assert found[r].matvecs <= max(most, alone.matvecs + 3 * k, alone.matvecs * 7 // 6)


@pytest.mark.parametrize("kind", ["matrices", "operators"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_replica_that_is_not_finite_touches_no_other(kind, bad, dtype):
    a = batch(dtype)
    a[1, 3, 5] = a[1, 5, 3] = bad
    kept = [0, 2, 3, 4, 5]
    given, clean = (a, a[kept]) if kind == "matrices" else (Several(a), Several(a[kept]))
    found, alone = cx.eigsh(given, 2), cx.eigsh(clean, 2)
    assert found.eigenvalues[1].isnan().all()
    assert found.errors[1].isnan().all()
    assert not found.converged[1]
    assert found.index_check[1] == "not finite"
    torch.testing.assert_close(found.eigenvalues[kept], alone.eigenvalues, rtol=1e-5, atol=0)
    for r in kept:
        check(found, r, a[r], "LA", 2)


def test_replicas_that_are_done_or_not_finite_cost_nothing_more():
    a = torch.stack(
        [
            spectra.matrix("geometric", torch.float64, 150),
            spectra.matrix("cluster_1e-4", torch.float64, 150),
            torch.full((150, 150), float("nan"), dtype=torch.float64),
        ]
    )
    operator = Several(a)
    found = cx.eigsh(operator, tol=1e-6)
    first, second, broken = operator.counts.tolist()
    assert broken <= 2
    assert first < second / 2
    assert found.matvecs.tolist() == [first, second, broken]


@pytest.mark.parametrize(("replicas", "n", "k"), [(1, 40, 1), (1, 5, 5), (1000, 4, 1), (300, 1, 1)])
@pytest.mark.parametrize("kind", ["matrices", "operators"])
def test_one_replica_and_a_thousand_small_ones(replicas, n, k, kind):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(replicas, n, n, generator=g, dtype=torch.float64)
    a = a + a.mT
    found = cx.eigsh(a if kind == "matrices" else Several(a), k)
    true = torch.linalg.eigvalsh(a).flip(1)[:, :k]
    assert ((found.eigenvalues - true).abs() <= found.errors + 1e-14).all()
    assert found.converged.all()


def test_starts_save_products_and_a_bad_one_is_replaced():
    a = batch(torch.float64, 150, ("cluster_1e-2", "geometric"))
    cold = cx.eigsh(Several(a), tol=1e-8, confidence=None)
    start = cold.eigenvectors.clone()
    warm = cx.eigsh(Several(a), tol=1e-8, confidence=None, v0=start)
    assert (warm.matvecs < cold.matvecs).all()
    start[0] = 0
    start[1, 2] = float("nan")
    for r, single in enumerate(a):
        check(cx.eigsh(Several(a), v0=start[:, :, 0]), r, single, "LA", 1)


def test_a_solve_that_is_stopped_says_so():
    a = batch(torch.float64, 150, ("cluster_1e-7", "flat"))
    found = cx.eigsh(Several(a), tol=1e-10, maxiter=6)
    assert not found.converged.any()
    assert (found.matvecs == 6).all()
    for r, single in enumerate(a):
        check(found, r, single, "LA", 1)


def test_restarts_keep_the_errors():
    a = batch(torch.float64, 200, ("cluster_1e-4", "cluster_1e-7", "flat"))
    for k in (1, 2):
        found = cx.eigsh(Several(a), k, tol=1e-9)
        assert (found.matvecs > 60).any()
        for r, single in enumerate(a):
            check(found, r, single, "LA", k)


def test_memory_is_bounded_by_groups_of_replicas(monkeypatch):
    a = batch(torch.float64)
    whole = cx.eigsh(Several(a), 2)
    monkeypatch.setattr(lanczos, "_BYTES", 1 << 17)
    parts = cx.eigsh(Several(a), 2)
    torch.testing.assert_close(parts.eigenvalues, whole.eigenvalues)
    assert torch.equal(parts.matvecs, whole.matvecs)


@pytest.mark.parametrize("name", ["cluster_1e-7", "flat", "geometric", "triple"])
@pytest.mark.parametrize("k", [1, 3])
def test_a_proof_never_claims_too_much(name, k, monkeypatch):
    """Pairs that are not the top ones, as an unlucky start finds them, are never proved."""
    a = batch(torch.float64, 80, (name,) * 4)
    values, vectors = torch.linalg.eigh(a)
    shifted = slice(80 - k - 1, 79)  # all but the largest
    solved = cx.ops.lanczos_dense
    wrong = solved(a, k)._replace(
        eigenvalues=values[:, shifted].flip(1),
        eigenvectors=vectors[:, :, shifted].flip(2).mT.contiguous(),
        errors=torch.full((4, k), 1e-12, dtype=torch.float64),
    )
    monkeypatch.setattr(
        dense.ops,
        "lanczos_dense",
        lambda a, *args, **options: wrong if len(a) == 4 else solved(a, *args, **options),
    )
    found = cx.eigsh(a, k, tol=1e-10)
    for r, single in enumerate(a):
        check(found, r, single, "LA", k)


def test_bad_batches_have_one_error_each():
    a = batch(torch.float64)
    with pytest.raises(ValueError, match=r"R >= 1"):
        cx.eigsh(a[:0])
    with pytest.raises(ValueError, match=r"must be \(R, n, n\)"):
        cx.eigsh(a[:, :3])
    with pytest.raises(TypeError, match="float32 or float64"):
        cx.eigsh(a.half())
    with pytest.raises(ValueError, match=r"k must be in \[1, n = 60\]"):
        cx.eigsh(a, 61)
    with pytest.raises(ValueError, match=r"v0 must be \(6, 60\)"):
        cx.eigsh(a, v0=torch.zeros(60))
    with pytest.raises(ValueError, match="precision must be 'full' for a batch"):
        cx.eigsh(a, precision="mixed")
    skew = a.clone()
    skew[2, 0, 1] += 1
    with pytest.raises(ValueError, match=r"A\[2\] must be symmetric"):
        cx.eigsh(skew)
    with pytest.raises(ValueError, match=r"must be symmetric .*\(replica 2\)"):
        cx.eigsh(Several(skew))
    with pytest.raises(TypeError, match="offer replicas"):
        cx.eigsh(a.numpy())


@needs_device
@pytest.mark.parametrize("replicas", [1, 5])
@pytest.mark.parametrize("k", [1, 2])
def test_one_launch_a_step_whatever_the_number_of_replicas(replicas, k):
    names = ("cluster_1e-2", "geometric", "cluster_1e-4", "indefinite", "triple")
    a = batch(torch.float64, 60, names[:replicas])
    a[replicas // 2, 0, 0] = float("nan") if replicas > 1 else a[0, 0, 0]
    with pretended_cuda("cpu") as device:
        operator = Several(moved(a))
        products = []
        whole = Several.__matmul__

        def counted(self, x):
            products.append(x.shape[0])
            return whole(self, x)

        Several.__matmul__ = counted
        try:
            device.reset()
            found = cx.eigsh(operator, k)
        finally:
            Several.__matmul__ = whole
        assert device.kernels["lanczos_step"] == k * len(products)
        assert device.kernels["tridiag_eigh"] == 0  # small, on the host
        device.reset()
        dense = cx.eigsh(moved(a), k)
        assert device.kernels["lanczos_dense"] == 1
        results = [(x.eigenvalues.cpu(), x.errors.cpu()) for x in (found, dense)]
    for values, errors in results:
        for r, single in enumerate(a):
            if not bool(single.isfinite().all()):
                assert values[r].isnan().all()
                continue
            assert ((values[r] - exact(single, "LA", k)).abs() <= errors[r]).all()
