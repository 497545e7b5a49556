"""TopTracker against LAPACK on operators that drift: errors hold, crossings are followed."""

import pytest
import torch

import catapult_ext as cx
from catapult_ext.eig import TopTracker
from catapult_ext.eig.operand import as_operand
from catapult_ext.eig.refine import refine

N = 80


class Wrapped:
    """A matrix that shows only shape, dtype and @."""

    def __init__(self, a):
        self._a, self.shape, self.dtype = a, a.shape, a.dtype

    def __matmul__(self, x):
        return self._a @ x


def drifting(steps, dtype, *, scale=1.0, lowest=-0.5):
    """Two leading eigenvalues that cross, a third that falls into the rest; axes that turn."""
    g = torch.Generator().manual_seed(3)
    q = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=g))[0]
    turn = torch.randn(N, N, dtype=torch.float64, generator=g)
    turn = torch.matrix_exp(0.002 * (turn - turn.T) / 2)
    for t in range(steps):
        e = torch.linspace(lowest, 0.6, N, dtype=torch.float64)
        share = t / (steps - 1)
        e[-3:] = torch.tensor([0.9 - 0.25 * share, 1.0, 0.8 + 0.4 * share], dtype=torch.float64)
        a = (q * e) @ q.T * scale
        yield ((a + a.T) / 2).to(dtype)
        q = turn @ q


@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e18])
@pytest.mark.parametrize("k", [1, 3])
def test_errors_hold_and_crossings_are_followed(k, scale, dtype):
    tracker = TopTracker(k)
    checked = products = 0
    for a in drifting(40, dtype, scale=scale):
        found = tracker.update(Wrapped(a))
        exact = torch.linalg.eigvalsh(a.double()).flip(0)[:k]
        miss = (found.eigenvalues.double() - exact).abs()
        assert bool((miss <= found.errors.double()).all()), (miss, found)
        assert found.converged
        assert bool((found.errors <= 1.00001e-3 * found.eigenvalues).all())
        rest = a.double() @ found.eigenvectors.double()
        rest -= found.eigenvectors.double() * found.eigenvalues.double()
        rounding = 1e-5 if dtype == torch.float32 else 1e-12
        slack = rounding * scale + found.residuals.double()
        assert bool((rest.norm(dim=0) <= slack).all())
        checked += found.index_check == "random(0.99)"
        products += found.matvecs
    assert 4 <= checked < 30
    cold = cx.eigsh(Wrapped(a), k).matvecs
    assert products < 0.75 * 40 * cold


def test_warm_updates_of_a_slow_drift_cost_few_products():
    tracker, counts = TopTracker(check_every=100), []
    for a in drifting(40, torch.float64):
        counts.append(tracker.update(Wrapped(a)).matvecs)
    assert sorted(counts[1:])[20] <= 4 < counts[0]


def test_updates_within_between_cost_one_product_for_each_vector():
    """Ten steps apart on a plain gap: the vector carried has made a step that cost nothing."""
    tracker, counts = TopTracker(between=1e-2, guards=2), []
    e = torch.linspace(-0.5, 0.3, N, dtype=torch.float64)
    e[-1] = 1.0
    g = torch.Generator().manual_seed(0)
    turn = torch.randn(N, N, dtype=torch.float64, generator=g)
    turn = torch.matrix_exp(1e-3 * (turn - turn.T))
    q = torch.eye(N, dtype=torch.float64)
    for _ in range(30):
        a = (q * e) @ q.T
        found = tracker.update(Wrapped((a + a.T) / 2))
        assert abs(found.eigenvalues.item() - 1) <= found.errors.item() <= 1.00001e-2
        if found.index_check == "inherited":
            counts.append(found.matvecs)
        q = turn @ q
    assert sorted(counts)[len(counts) // 2] == 3  # with two guards
    assert len(counts) == 27


def turning(steps, evenly):
    """A top vector that turns by 0.1 a step, always further or to and fro, among eigenvalues."""
    e = torch.linspace(0, 0.3, N, dtype=torch.float64)
    e[-1] = 1.0
    for t in range(steps):
        angle = torch.tensor(0.1 * (t if evenly else t % 2), dtype=torch.float64)
        q = torch.eye(N, dtype=torch.float64)
        rows = torch.tensor([0, N - 1])
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
        q[rows[:, None], rows] = turn
        a = (q * e) @ q.T
        yield (a + a.T) / 2


@pytest.mark.parametrize("k", [1, 2])
def test_an_even_movement_is_led_on(k):
    """Where it leads, the residual is far smaller than where the vector was."""
    tracker, first = TopTracker(k, guards=1, between=0.3, check_every=100), []
    for a in turning(12, evenly=True):
        if tracker.warm:
            start = tracker._start(k)[0]
            rest = a @ start - (start @ a @ start) * start
            first.append(rest.norm().item())
        found = tracker.update(Wrapped(a))
        assert abs(found.eigenvalues[0].item() - 1) <= found.errors[0].item()
    assert min(first[:2]) > 0.02
    assert max(first[3:]) < 0.2 * min(first[:2])


def test_a_movement_to_and_fro_is_not_led_on():
    tracker, led = TopTracker(guards=0, between=0.3, check_every=100), []
    for a in turning(12, evenly=False):
        tracker.update(Wrapped(a))
        led.append(tracker._leads)
    assert not any(led)


@pytest.mark.parametrize("seed", range(12))
def test_a_guard_that_rises_past_wanted_pairs_is_followed(seed):
    """Also past wanted pairs that stand still, which themselves give no sign of it."""
    n, k = 70, 1 + seed % 3
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g))[0]
    turn = torch.randn(n, n, dtype=torch.float64, generator=g)
    rate = 10 ** (-1.5 - 2 * torch.rand(1, generator=g).item())
    turn = torch.matrix_exp(rate * (turn - turn.T) / n**0.5)
    tracker = TopTracker(k, guards=2, seed=seed)
    for t in range(16):
        e = torch.linspace(-0.5, 0.6, n, dtype=torch.float64)
        e[-4:] = torch.tensor([0.9 - 0.25 * t / 16, 1.0, 0.8 + 0.4 * t / 16, 0.75])
        a = (q * e) @ q.T
        found = tracker.update(Wrapped((a + a.T) / 2))
        exact = e.sort(descending=True).values[:k]
        assert bool(((found.eigenvalues - exact).abs() <= found.errors).all())
        q = turn @ q


@pytest.mark.parametrize("change", ["cross", "close", "outside"])
@pytest.mark.parametrize("seed", range(6))
def test_errors_between_checks_hold_where_the_contract_does(change, seed):
    """Of at most j eigenvalues above the value less half of each distance at the last check."""
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=g))[0]
    turn = torch.randn(N, N, dtype=torch.float64, generator=g)
    turn = torch.matrix_exp(10 ** (-3.5 + seed / 3) * (turn - turn.T) / 2)
    k = 1 + seed % 2
    tracker, held, last = TopTracker(k, between=1e-2, guards=2, seed=seed), 0, 0
    for t in range(30):
        e = torch.linspace(-0.6, 0.5, N, dtype=torch.float64)
        e[-4:] = torch.tensor([0.6, 0.75, 0.85, 1.0], dtype=torch.float64)
        share = t / 29
        if change == "cross":
            e[-2] += 0.4 * share
        elif change == "close":
            e[-2] = 1.0 - 0.15 * abs(1 - 2 * share)
        else:
            e[0] = 1.3 * share
        a = (q * e) @ q.T
        a, q = (a + a.T) / 2, turn @ q
        found = tracker.update(Wrapped(a))
        exact = e.sort(descending=True).values
        lowest = found.eigenvalues[-1] - torch.tensor(tracker._gaps) / 2 * found.eigenvalues[0]
        follow = exact[k : k + len(lowest)]
        if found.index_check != "inherited" or bool((follow <= lowest).all()):
            assert bool(((found.eigenvalues - exact[:k]).abs() <= found.errors).all())
            held += 1
        last = max(last, (found.eigenvalues[0] - exact[0]).abs().item() * (t % 10 == 0))
    assert held >= 15
    assert last <= 1e-3 * 1.3  # checks see what came from outside


def test_a_lowest_value_below_minus_the_top_is_not_carried_along():
    e = torch.linspace(-2.0, 0.3, N, dtype=torch.float64)
    e[-1] = 1.0
    g = torch.Generator().manual_seed(1)
    turn = torch.randn(N, N, dtype=torch.float64, generator=g)
    turn, q = torch.matrix_exp(5e-4 * (turn - turn.T)), torch.eye(N, dtype=torch.float64)
    tracker = TopTracker(between=1e-2, check_every=100)
    for _ in range(20):
        a = (q * e) @ q.T
        found = tracker.update(Wrapped((a + a.T) / 2))
        assert abs(found.eigenvalues.item() - 1) <= found.errors.item() <= 1.00001e-2
        q = turn @ q
    assert tracker.checks == 1


def test_a_skew_between_single_products_is_noise():
    """Of one vector at a time only <u, A v> - <A u, v> of earlier ones can show it."""
    e = torch.linspace(0, 0.5, N, dtype=torch.float64)
    e[-1] = 1.0
    a, start = torch.diag(e), torch.zeros(1, N, dtype=torch.float64)
    start[0, -1], start[0, :3] = 1.0, 1e-4
    skewed = a.clone()
    skewed[-1, 0], skewed[0, -1] = 1e-6, -1e-6
    found = [
        refine(as_operand(Wrapped(m), "test"), start, 1, [0.5], 1e-9, "inherited", "test")
        for m in (a, skewed)
    ]
    assert found[1].errors[0] >= 1e-6 > 100 * found[0].errors[0]


def test_every_check_draws_fresh_vectors():
    """A start that misses the top is found out by the next checked update."""
    tracker = TopTracker(guards=0, check_every=3)
    e = torch.linspace(0, 0.5, N, dtype=torch.float64)
    e[-1] = 1.0
    tracker.update(Wrapped(torch.diag(e)))
    e[-2] = 2.0  # jumps from the bulk, orthogonal to all that is carried
    a = Wrapped(torch.diag(e))
    inherited = tracker.update(a)
    assert inherited.index_check == "inherited"
    assert inherited.eigenvalues.item() == pytest.approx(1.0)
    tracker.update(a)
    found = tracker.update(a)
    assert found.index_check == "random(0.99)"
    assert found.eigenvalues.item() == pytest.approx(2.0, rel=1e-3)


def test_missed_tolerance_costs_a_checked_solve():
    tracker = TopTracker(2)
    g = torch.Generator().manual_seed(0)
    matrices = [torch.randn(N, N, dtype=torch.float64, generator=g) for _ in range(2)]
    first, second = (Wrapped(m + m.T) for m in matrices)
    tracker.update(first)
    assert tracker.update(second).index_check == "random(0.99)"


def test_grow_and_another_size():
    tracker = TopTracker(1)
    a, b = torch.diag(torch.arange(1.0, 31)), torch.diag(torch.arange(1.0, 11))
    assert tracker.update(Wrapped(a)).eigenvalues.tolist() == pytest.approx([30], rel=1e-3)
    tracker.grow(3)
    found = tracker.update(Wrapped(a))
    assert found.index_check == "random(0.99)"
    assert found.eigenvalues.tolist() == pytest.approx([30, 29, 28], rel=1e-3)
    found = tracker.update(Wrapped(b))
    assert found.eigenvalues.tolist() == pytest.approx([10, 9, 8], rel=1e-3)
    with pytest.raises(ValueError, match="only grow"):
        tracker.grow(2)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_zero_negative_and_complete(k):
    for e in (torch.zeros(5), -torch.arange(1.0, 6), torch.ones(5)):
        tracker = TopTracker(k, check_every=4)
        for _ in range(5):
            found = tracker.update(Wrapped(torch.diag(e)))
            exact = e.sort(descending=True).values[:k]
            assert bool(((found.eigenvalues - exact).abs() <= found.errors).all())
            assert found.converged


def test_gauss_newton_is_followed_in_the_smaller_space():
    data = cx.data.digits(train=32)
    model = cx.models.fully_connected(64, 10, width=32, depth=2)
    tracker = TopTracker(2)
    for _ in range(4):
        a = cx.GGN(model, "half_mse", data.train)
        found = tracker.update(a)
        exact = cx.eigsh(a, 2, tol=1e-6)
        assert found.eigenvectors.shape == (a.shape[0], 2)
        assert bool(((found.eigenvalues - exact.eigenvalues).abs() <= found.errors).all())
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.995)
    assert found.index_check == "inherited"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 0}, "k must be"),
        ({"tol": 0.0}, "tol must be"),
        ({"between": 1.5}, "between must be"),
        ({"between": 1e-4}, r"between must be in \[tol, 1\), tol=0.001"),
        ({"guards": -1}, "guards must be"),
        ({"check_every": 0}, "check_every must be"),
        ({"confidence": 1.0}, "confidence must be"),
    ],
)
def test_refused(options, text):
    with pytest.raises(ValueError, match=text):
        TopTracker(**options)


@pytest.mark.nightly
def test_one_step_of_descent_costs_three_products():
    x, y = cx.data.digits(size=28).train
    model = cx.models.fully_connected(784, 10, width=512, depth=3, parameterisation="standard")
    tracker = TopTracker()
    top = tracker.update(cx.GGN(model, "half_mse", (x, y))).eigenvalues.item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / top)
    products = []
    for step in range(50):
        optimizer.zero_grad()
        ((model(x) - y).square().sum() / (2 * len(x))).backward()
        optimizer.step()
        ggn = cx.GGN(model, "half_mse", (x, y))
        found = tracker.update(ggn)
        products.append(found.matvecs)
        assert found.errors.item() <= 1.00001e-3 * found.eigenvalues.item()
        if step % 10 == 5:
            exact = cx.eigsh(ggn, tol=1e-6, seed=step).eigenvalues.item()
            assert abs(found.eigenvalues.item() - exact) <= found.errors.item()
    assert sorted(products)[len(products) // 2] <= 3
