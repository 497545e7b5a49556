"""CurvatureTracker: right values along training, an untouched model, an enforced budget."""

import json
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.probes import activity
from catapult_ext.probes.record import BoundedRecord

DATA = cx.data.digits(train=32)


def network(dtype=torch.float32, seed=0):
    return cx.models.fully_connected(64, 10, width=16, depth=2, seed=seed, dtype=dtype)


def half_mse(model, x, y):
    return (model(x) - y).square().sum() / (2 * len(x))


def train(model, tracker, eta, steps, *, data=DATA.train, momentum=0.0, see=None):
    optimizer = tracker.optimizer or torch.optim.SGD(model.parameters(), lr=eta, momentum=momentum)
    x, y = data
    for _ in range(steps):
        optimizer.zero_grad()
        loss = half_mse(model, x, y)
        loss.backward()
        optimizer.step()
        row = tracker.step(loss, batch=data)
        if row is not None and see is not None:
            see(row)


OPERATORS = {
    "ggn": lambda m, x, y: cx.GGN(m, "half_mse", (x, y)),
    "hessian": lambda m, x, y: cx.Hessian(m, "half_mse", (x, y)),
    "ntk": lambda m, x, y: cx.NTK(m, x),
}


def test_probes_between_checks_are_asked_for_ten_times_tol_unless_between_is_given():
    for options, most in (({}, 1e-2), ({"tol": 1e-6}, 1e-5), ({"between": 1e-3}, 1e-3)):
        model = network(torch.float64)
        data = tuple(t.double() for t in DATA.train)
        tracker = cx.CurvatureTracker(model, "half_mse", data, every=2, **options)
        train(model, tracker, 0.005, 12, data=data)
        rows = [row for row in tracker.probes[1:] if "checked" not in row["flags"]]
        assert len(rows) >= 3
        assert all(row["errors"][0] <= 1.00001 * most * row["values"][0] for row in rows)


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "batch"])
@pytest.mark.parametrize("quantity", OPERATORS)
def test_values_through_a_catapult(quantity, fixed):
    if quantity == "ntk" and not fixed:
        pytest.skip("the kernel of another batch is another space")
    model = network()
    lambda0 = float(cx.eigsh(OPERATORS["ggn"](model, *DATA.train)).eigenvalues[0])
    eta = 6.0 / lambda0
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    tracker = cx.CurvatureTracker(
        model,
        "half_mse",
        DATA.train if fixed else None,
        quantity=quantity,
        k=2,
        every=3,
        optimizer=optimizer,
    )

    def compare(row):
        exact = cx.eigsh(OPERATORS[quantity](model, *DATA.train), 2, tol=1e-6)
        for value, error, true in zip(row["values"], row["errors"], exact.eigenvalues, strict=True):
            assert abs(value - float(true)) <= error + 2e-6 * abs(value)

    with tracker:
        train(model, tracker, eta, 30, see=compare)
    assert len(tracker.probes) == (11 if fixed else 10)
    values = [row["values"][0] for row in tracker.probes]
    assert values[-1] < 0.7 * values[0]
    assert tracker.steps_seen[-1]["loss"] < tracker.steps_seen[0]["loss"]
    assert tracker.probes[-1]["products"] > 0
    assert {row["index_check"] for row in tracker.probes} >= {"random(0.99)"}
    assert all("missed" not in row["flags"] for row in tracker.probes)


def test_free_observables_on_a_quadratic():
    """On a linear model the loss is quadratic: r is g'Hg/|g|^2 exactly, lambda_r the kernel's."""
    model = nn.Linear(64, 10, bias=False).double()
    x, y = (t.double() for t in DATA.train)
    lambda0 = float(cx.eigsh(cx.GGN(model, "half_mse", (x, y)), tol=1e-8).eigenvalues[0])
    eta = 2.2 / lambda0
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    tracker = cx.CurvatureTracker(model, "half_mse", (x, y), optimizer=optimizer, every=100)
    expected = []
    with tracker:
        for _ in range(12):
            optimizer.zero_grad()
            residual = model(x) - y
            loss = residual.square().sum() / (2 * len(x))
            loss.backward()
            g = model.weight.grad
            along = (x @ g.T).square().sum() / len(x) / g.square().sum()
            kernel = (x.T @ residual).square().sum() / residual.square().sum() / len(x)
            expected.append((along.item(), kernel.item()))
            optimizer.step()
            tracker.step(loss)
    rows = tracker.steps_seen
    assert rows[-1]["r"] is None  # the next loss is not known yet
    for i, row in enumerate(rows[:-1]):
        assert row["r"] == pytest.approx(expected[i][0], rel=1e-8)
        assert row["lambda_r"] == pytest.approx(expected[i][1], rel=1e-10)
        assert (row["r"] > 2 / eta) == (rows[i + 1]["loss"] > row["loss"])
    assert any(row["r"] > 2 / eta for row in rows[:-1])


def test_r_needs_plain_descent():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    tracker = cx.CurvatureTracker(model, "half_mse", DATA.train, optimizer=optimizer, every=50)
    train(model, tracker, 1e-3, 3)
    assert [row["r"] for row in tracker.steps_seen] == [None] * 3


@pytest.mark.parametrize("quantity", ["ggn", "ntk"])
def test_shares_of_the_residual_and_drift(quantity):
    model = network(torch.float64)
    x, y = (t.double() for t in DATA.train)
    options = {"quantity": quantity, "k": 3, "tol": 1e-8, "kernel_samples": 16}
    tracker = cx.CurvatureTracker(model, "half_mse", (x, y), **options)
    tracker.start()
    start = cx.NTK(model, x[:16]).dense(outputs="trace")
    _, vectors = torch.linalg.eigh(cx.NTK(model, x).dense())
    residual = (model(x) - y).detach().reshape(-1)
    exact = (vectors.flip(1)[:, :3].T @ residual).square() / residual.square().sum()
    assert tracker.probes[0]["top_shares"] == pytest.approx(exact.tolist(), rel=1e-3)
    assert tracker.probes[0]["drift"] == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    tracker.every = 1
    row = tracker.step()
    now = cx.NTK(model, x[:16]).dense(outputs="trace")
    assert row["drift_norm"] == pytest.approx(float((now - start).norm() / start.norm()))
    assert row["drift"] == pytest.approx(
        1 - float((now * start).sum() / now.norm() / start.norm()), abs=1e-12
    )


def test_k_grows_at_the_threshold():
    model = network()
    value = float(cx.eigsh(cx.GGN(model, "half_mse", DATA.train)).eigenvalues[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.6 / value)
    options = {"optimizer": optimizer, "every": 1, "max_k": 3, "grow_at": 0.2}
    tracker = cx.CurvatureTracker(model, "half_mse", DATA.train, **options)
    with tracker:
        train(model, tracker, None, 4)
    lengths = [len(row["values"]) for row in tracker.probes]
    assert lengths[0] == 1
    assert max(lengths) == 3
    for row, length in zip(tracker.probes, lengths[1:], strict=False):
        grew = length > len(row["values"])
        may = len(row["values"]) < 3
        assert grew == (may and row["eta"] * row["values"][-1] > 0.2)


def test_activity_needs_no_forward_pass_of_its_own(monkeypatch):
    model, x = network(), DATA.x_train
    tracker = cx.CurvatureTracker(model, "half_mse", DATA.train, every=1)
    want = activity(model, x)[1].inactive
    calls = []
    monkeypatch.setattr(
        "catapult_ext.probes.curvature_probe.activity", lambda *a: calls.append(a) or activity(*a)
    )
    with tracker:
        assert tracker.probes[0]["inactive"] == want
    assert not calls
    # frozen in chunks: the first pass of all samples, which checks the chunks, is the only one
    monkeypatch.setattr(
        "catapult_ext.probes.curvature_probe.GGN", partial(cx.GGN, samples_at_once=len(x) // 2)
    )
    with cx.CurvatureTracker(model, "half_mse", DATA.train, every=1) as chunked:
        assert not calls
        chunked.step()
    assert [probe["inactive"] for probe in chunked.probes] == [want, want]
    assert len(calls) == 1


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 10)
    )
    half_mse(model, *DATA.train).backward()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    generator = torch.get_rng_state()
    for budget in (None, 0.5):
        tracker = cx.CurvatureTracker(model, "half_mse", DATA.train, every=1, budget=budget)
        with tracker:
            for _ in range(4):
                tracker()
        assert tracker.probes
    assert all(m.training for m in model.modules())
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    pairs = zip(model.parameters(), gradients, strict=True)
    assert all(torch.equal(p.grad, g) for p, g in pairs)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(not m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("budget", [0.03, 0.1, 0.5])
def test_budget_is_kept(budget, monkeypatch):
    """A clock that counts: a step takes 1, a forward pass 0.3, checked probes 12, others 2."""
    model, now = network(), [0.0]
    tracker = cx.CurvatureTracker(model, "half_mse", DATA.train, budget=budget, samples=8, every=2)
    tracker.overhead.clock = lambda: now[0]
    measure = tracker._measure

    def timed(data):
        row = measure(data)
        now[0] += 12 if "checked" in row["flags"] else 2
        return row

    monkeypatch.setattr(tracker, "_measure", timed)
    with tracker:
        for _ in range(600):
            now[0] += 1.0
            tracker.step()
            assert len(tracker.probes) <= 1 or tracker.overhead.share <= budget
    assert tracker.overhead.share <= budget
    assert tracker.overhead.training == 600
    spent = sum(12 if "checked" in r["flags"] else 2 for r in tracker.probes)
    assert tracker.overhead.probing == spent
    assert spent > 0.5 * budget * 600 - 12
    assert f"{budget:.0%}" in tracker.report()


@pytest.mark.parametrize("quantity", ["ggn", "hessian", "ntk"])
def test_a_run_that_diverges_goes_on(quantity, tmp_path):
    model = cx.models.fully_connected(64, 10, width=16, depth=2, activation_name="linear")
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    options = {"every": 2, "out": tmp_path / "run", "grow_at": 1.5, "max_k": 2}
    options |= {"optimizer": optimizer, "quantity": quantity}
    with cx.CurvatureTracker(model, "half_mse", DATA.train, **options) as tracker:
        for _ in range(20):
            optimizer.zero_grad()
            loss = half_mse(model, *DATA.train)
            loss.backward()
            optimizer.step()
            tracker.step(loss)
    last = tracker.probes[-1]
    # A loss of infinity is a jump, which is probed at once; one that turns into NaN is none.
    assert last["step"] in (19, 20)
    assert last["flags"] == ["diverged"]
    assert all(math.isnan(v) for v in last["values"])
    assert tracker.probes[0]["values"][0] > 0
    assert (tmp_path / "run" / "summary.csv").exists()


def test_an_error_is_no_divergence_whatever_its_text():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(64, 10)

        def forward(self, x):
            raise ValueError("the temperature must be finite")

    tracker = cx.CurvatureTracker(Broken(), "half_mse", DATA.train, every=1)
    with pytest.raises(ValueError, match="the temperature must be finite"):
        tracker.step()
    assert tracker.probes == []


def test_norms_of_gradients_keep_to_a_third_of_a_budget(monkeypatch):
    """A clock that counts: a step takes 1, a norm 0.5; 0.1 / 3 a step pays for one in 15."""
    model, now = network(), [0.0]

    def dear(_model):
        now[0] += 0.5
        return 1.0

    monkeypatch.setattr("catapult_ext.probes.free.squared_gradient", dear)
    taken = {}
    for budget in (None, 0.1):
        tracker = cx.CurvatureTracker(model, "half_mse", DATA.train, budget=budget, every=1000)
        tracker.overhead.clock = lambda: now[0]
        with tracker:
            for _ in range(150):
                now[0] += 1.0
                tracker.step(1.0)
        taken[budget] = [r["step"] for r in tracker.steps_seen if r["gradient"] is not None]
    assert taken[None] == list(range(150))
    assert len(taken[0.1]) == 11  # the first is made before there is a step to take a share of
    assert taken[0.1][-1] > 120  # spread over training


def test_budget_chooses_the_samples():
    class Clock:  # a class: hooks that write lists write copies of them in the tracker's passes
        now = 0.0

    def tick(*_):
        Clock.now += 0.05

    model = network()
    tracker = cx.CurvatureTracker(model, "half_mse", DATA.train, budget=0.1, steps=200)
    tracker.overhead.clock = lambda: Clock.now
    model.register_forward_hook(tick)
    tracker.start()
    for _ in range(3):
        Clock.now += 1.0
        tracker.step()
    # a tenth of 0.1 * 200 steps is 2, a checked solve on all 32 samples 50 * 0.05
    assert tracker.samples == 25
    assert "25 samples" in tracker.report()


def test_run_folder_and_plot(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    options = {"optimizer": optimizer, "every": 2, "out": tmp_path / "run"}
    tracker = cx.CurvatureTracker(model, "half_mse", DATA.train, **options)
    with tracker:
        train(model, tracker, None, 4)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["step"] for row in summary["probes"]] == [0, 2, 4]
    assert summary["probes"][0]["values"] == tracker.probes[0]["values"]
    table = (tmp_path / "run" / "summary.csv").read_text().splitlines()
    assert len(table) == 4
    assert json.loads((tmp_path / "run" / "timing.json").read_text())["probing"] > 0
    pytest.importorskip("matplotlib")
    assert (tmp_path / "run" / "fig_curvature.png").read_bytes()[:4] == b"\x89PNG"
    lines = tracker.plot(tmp_path / "a.png").axes[0].get_lines()
    drawn = [line.get_ydata().tolist() for line in lines]
    assert [row["values"][0] for row in tracker.probes] in [list(d) for d in drawn]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"quantity": "fisher"}, ValueError, "quantity must be"),
        ({"every": 0}, ValueError, "every must be"),
        ({"between": 1.0}, ValueError, "between must be"),
        ({"budget": 0.0}, ValueError, "budget must be"),
        ({"samples": 0}, ValueError, "samples must be"),
        ({"k": 3, "max_k": 2}, ValueError, "max_k must be"),
        ({"grow_at": 1.5}, ValueError, "grow_at needs the optimizer"),
        ({"preconditioned": True}, ValueError, "preconditioned=True needs the optimizer"),
        ({"data": None, "quantity": "ntk"}, ValueError, "fixed probe set"),
        ({"data": None, "kernel_samples": 4}, ValueError, "drift needs data"),
        ({"data": torch.ones(3)}, TypeError, "pair"),
    ],
)
def test_refused(options, error, text):
    with pytest.raises(error, match=text):
        cx.CurvatureTracker(network(), "half_mse", **{"data": DATA.train, **options})


def test_a_step_without_batch_is_refused():
    tracker = cx.CurvatureTracker(network(), "half_mse")
    with pytest.raises(ValueError, match="batch is needed"):
        tracker.step()


def test_rows_of_all_users_are_of_one_type():
    """Trackers, sweeps and runs record keys of Row; a sweep has a column for every observable."""
    from catapult_ext.experiments.descent import Recipe, start, train
    from catapult_ext.probes.record import Observables, Row, columns

    with cx.CurvatureTracker(network(), "half_mse", DATA.train) as tracker:
        pass
    recipe = Recipe(steps=1)
    problem = start(network(), DATA, "half_mse", recipe)
    probes = train(problem, problem.eta(1.0, recipe), recipe)["probes"]
    for row in (*tracker.probes, *probes):
        assert set(row) <= set(Row.__annotations__)
    observed = {"probe_steps", *Observables.__annotations__}
    assert set(columns([])) == observed
    record = cx.sweep(network(), DATA, c=[1.0], steps=1).records[0]
    assert observed <= set(record)
    assert record["probe_steps"] == [0, 1]
    # a key that no row has yet is a column without values
    assert columns([{"step": 3}], ["step", "drift"]) == {"step": [3], "drift": [None]}


def test_20000_steps_leave_a_bounded_record():
    """Entries are counted: all of the first, evenly spread later ones, and the last step."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.ones(1, 1), torch.ones(1, 1)
    tracker = cx.CurvatureTracker(model, "half_mse", data, every=10**6, optimizer=optimizer)
    tracked, entries = 20_000, {}
    for step in range(tracked):
        tracker.step(1.0)
        if step + 1 in (tracked // 2, tracked):
            entries[step + 1] = len(pickle.dumps([tracker.steps_seen, tracker.probes]))
    steps = [row["step"] for row in tracker.steps_seen]
    assert steps[:4096] == list(range(4096))
    assert steps[-1] == tracked - 1
    assert len(steps) <= 2 * 4096 + 1
    assert set(np.diff(steps[4096:-1])) == {4}
    assert entries[tracked] <= 1.4 * entries[tracked // 2] < 2e6  # bytes
    assert tracker.count == tracked
    assert len(tracker.probes) == 1


@pytest.mark.parametrize("count", [1, 8, 9, 16, 17, 18, 31, 32, 33, 100, 1000])
def test_a_bounded_record_is_even_and_ends_with_the_last_row(count):
    record = BoundedRecord(first=8)
    for i in range(count):
        record.append(i)
        assert record.rows[-1] == i
        assert len(record.rows) <= 17
    rows = record.rows
    assert rows[:8] == list(range(min(count, 8)))
    later = rows[8:-1]
    assert len(set(np.diff(later))) <= 1
    if count > 8:
        assert rows[8] == 8
    if count >= 17:
        assert len(rows) >= 8 + 4
