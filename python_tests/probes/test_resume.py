"""Trackers resume from their state with the same bits; their folder has every probe made."""

import csv
import io
import json
import math
from types import SimpleNamespace

import pytest
import torch

import catapult_ext as cx
from catapult_ext._store import RunFolderError
from catapult_ext.probes import tracked_folder

DATA = cx.data.digits(train=32).train


def half_mse(model, x, y):
    return (model(x) - y).square().sum() / (2 * len(x))


def kept(state):
    """What a checkpoint gives back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def make(kind="SGD", **options):
    model = cx.models.fully_connected(64, 10, width=16, depth=2, seed=0)
    optimizer = {
        "SGD": lambda: torch.optim.SGD(model.parameters(), lr=0.05),
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        "Adam": lambda: torch.optim.Adam(model.parameters(), lr=1e-3),
    }[kind]()
    defaults = {"optimizer": optimizer, "every": 3, "k": 2}
    return cx.CurvatureTracker(model, "half_mse", DATA, **(defaults | options))


def train(tracker, steps, data=DATA):
    for _ in range(steps):
        tracker.optimizer.zero_grad()
        loss = half_mse(tracker.model, *data)
        loss.backward()
        tracker.optimizer.step()
        tracker.step(loss, batch=data)


def interrupted(first, second, before, after):
    """``before`` steps with one tracker, ``after`` with another that loaded all states."""
    train(first, before)
    saved = kept([t.state_dict() for t in (first.model, first.optimizer, first)])
    first.close()
    second.model.load_state_dict(saved[0])
    second.optimizer.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    train(second, after)
    return second


CASES = {
    "plain": {},
    "hessian": {"quantity": "hessian"},
    "kernel": {"quantity": "ntk", "kernel_samples": 4},
    "momentum, zeta": {"kind": "momentum", "full_batch": True},
    "Adam": {"kind": "Adam", "full_batch": True},
    "batch": {"data": None},
    "grows": {"grow_at": 1e-9, "max_k": 4},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_resumed_tracker_gives_the_same_rows(case, before):
    options = dict(CASES[case])
    whole = make(**options) if "data" not in options else batched()
    train(whole, 14)
    pair = [make(**options) if "data" not in options else batched() for _ in range(2)]
    resumed = interrupted(*pair, before, 14 - before)
    assert repr(resumed.probes) == repr(whole.probes)  # NaN is not equal to itself
    assert repr(resumed.steps_seen) == repr(whole.steps_seen)
    assert resumed.k == whole.k
    whole.close()
    resumed.close()


def batched():
    model = cx.models.fully_connected(64, 10, width=16, depth=2, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return cx.CurvatureTracker(model, "half_mse", optimizer=optimizer, every=3, k=2)


def test_what_a_budget_has_spent_and_chosen_is_kept():
    first = make(budget=0.5, steps=100)
    first.overhead.clock = iter(range(10**6)).__next__
    train(first, 12)
    second = make(budget=0.5, steps=100)
    second.load_state_dict(kept(first.state_dict()))
    assert second.overhead.share == first.overhead.share > 0
    assert second.samples == first.samples is not None
    assert second.report() == first.report()
    first.close()


@pytest.mark.parametrize("full_batch", [True, False])
def test_a_resumed_meter_gives_the_same_rows(full_batch):
    def begin():
        model = cx.models.fully_connected(64, 10, width=16, depth=2, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
        bent = {} if full_batch else {"curvature_every": 4}
        meter = cx.EdgeMeter(model, optimizer, full_batch=full_batch, every=2, **bent)
        return model, optimizer, meter

    def go(model, optimizer, meter, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = half_mse(model, *DATA)
            loss.backward()
            optimizer.step()
            meter.step(loss, evaluate=None if full_batch else lambda: half_mse(model, *DATA))

    whole = begin()
    go(*whole, 11)
    first, second = begin(), begin()
    go(*first, 5)  # a full batch's row of step 4 waits for the next loss
    for one, other in zip(first, second, strict=True):
        other.load_state_dict(kept(one.state_dict()))
    go(*second, 6)
    assert repr(second[2].rows) == repr(whole[2].rows)
    assert math.isfinite(second[2].rows[2]["zeta"])


def test_top_trackers_go_on_with_the_same_bits():
    def matrices(t):
        g = torch.Generator().manual_seed(0)
        a = torch.randn(3, 40, 40, generator=g, dtype=torch.float64)
        b = torch.randn(3, 40, 40, generator=g, dtype=torch.float64)
        return a @ a.mT + 1e-3 * t * (b + b.mT)

    for pick in (lambda m: m[0], lambda m: m):  # one operator, and three together
        whole, first, second = (cx.TopTracker(2, check_every=4) for _ in range(3))
        found = [whole.update(pick(matrices(t))) for t in range(8)]
        for t in range(5):
            first.update(pick(matrices(t)))
        second.load_state_dict(kept(first.state_dict()))
        assert second.warm
        for t in range(5, 8):
            again = second.update(pick(matrices(t)))
            assert torch.equal(again.eigenvalues, found[t].eigenvalues)
            assert torch.equal(again.errors, found[t].errors)
            assert repr(again.matvecs) == repr(found[t].matvecs)


def test_a_state_is_a_copy():
    tracker = cx.TopTracker(1)
    matrix = torch.diag(torch.arange(1.0, 9.0))
    tracker.update(matrix)
    state = tracker.state_dict()
    other = cx.TopTracker(1)
    other.load_state_dict(state)
    state["block"].zero_()
    assert tracker.update(matrix).converged
    assert other.update(matrix).index_check == "inherited"


def test_states_of_something_else_are_refused():
    tracker, meter = make(), cx.EdgeMeter(*(make().model, make().optimizer))
    hessian = make(quantity="hessian").state_dict()
    for state, error, text in [
        (3, TypeError, "state must be what state_dict"),
        ({}, ValueError, "state must have format = 'catapult_ext CurvatureTracker 1', got None"),
        (hessian, ValueError, "state must have quantity = 'ggn', got 'hessian'"),
        ({**tracker.state_dict(), "parameters": 1}, ValueError, "state must have parameters"),
    ]:
        with pytest.raises(error, match=f"CurvatureTracker.load_state_dict.*{text}"):
            tracker.load_state_dict(state)
    with pytest.raises(ValueError, match=r"TopTracker.load_state_dict: state must be whole.*block"):
        cx.TopTracker().load_state_dict({"format": "catapult_ext TopTracker 3"})
    with pytest.raises(ValueError, match=r"state must have format = 'catapult_ext TopTracker 3'"):
        cx.TopTracker().load_state_dict({"format": "catapult_ext TopTracker 2"})
    with pytest.raises(ValueError, match=r"EdgeMeter.load_state_dict: state must have format"):
        meter.load_state_dict(tracker.state_dict())
    with tracker, pytest.raises(ValueError, match="must not have begun"):
        tracker.load_state_dict(tracker.state_dict())


class Killed(BaseException):
    """Stands for a signal that ends the process in the middle of a write."""


def test_a_killed_run_leaves_all_probes_but_one(tmp_path, monkeypatch):
    out, synced = tmp_path / "run", []

    def sync(_file):
        synced.append(len((out / "probes.jsonl").read_text().splitlines()))
        if len(synced) == 4:
            raise Killed

    monkeypatch.setattr(tracked_folder, "os", SimpleNamespace(fsync=sync))
    first = make(out=out)
    first.start()
    folder = first._folder
    saved = None
    for _ in range(5):
        try:
            train(first, 2)
        except Killed:
            break
        saved = kept([t.state_dict() for t in (first.model, first.optimizer, first)])
    assert synced == [1, 2, 3, 4]  # each probe is there before training continues
    monkeypatch.undo()
    folder.close()  # what the system does for a process that ends
    with open(out / "probes.jsonl", "a") as file:
        file.write('{"step": 9, "val')  # half a line
    assert not (out / "summary.csv").exists()

    with pytest.raises(RunFolderError, match=r"holds 4 probes of an earlier run; load that"):
        make(out=out).start()
    second = make(out=out)
    for owner, state in zip((second.model, second.optimizer, second), saved, strict=True):
        owner.load_state_dict(state)
    train(second, 6)
    second.close()
    lines = [json.loads(text) for text in (out / "probes.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines] == [row["step"] for row in second.probes]
    assert [row["values"] for row in lines] == [row["values"] for row in second.probes]
    assert len((out / "summary.csv").read_text().splitlines()) == 1 + len(lines)


def test_a_full_disk_ends_no_training(tmp_path, monkeypatch):
    def full(_file):
        raise OSError(28, "No space left on device")

    tracker = make(out=tmp_path / "run")
    tracker.start()
    monkeypatch.setattr(tracked_folder, "os", SimpleNamespace(fsync=full))
    with pytest.warns(RuntimeWarning, match=r"cannot write .*probes.jsonl: No space left") as seen:
        train(tracker, 7)
    assert len(seen) == 1
    monkeypatch.undo()
    tracker.close()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["step"] for row in summary["probes"]] == [0, 3, 6]


def test_tables_hold_all_values(tmp_path):
    tracker = make(out=tmp_path / "run", k=1, grow_at=1e-9, max_k=3)
    train(tracker, 7)
    tracker.close()
    with open(tmp_path / "run" / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert [len(row["values"]) for row in tracker.probes] == [1, 2, 3]
    for row, probe in zip(rows, tracker.probes, strict=True):
        texts = [row["lambda"], row["lambda_2"], row["lambda_3"]]
        assert [float(text) for text in texts if text] == probe["values"]
        errors = [row["error"], row["error_2"], row["error_3"]]
        assert [float(text) for text in errors if text] == probe["errors"]
