"""Every experiment of the paper at smoke scale, and what surrounds them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

import catapult_ext as cx
from catapult_ext._processes import Ranks
from catapult_ext.experiments import reproduce as rp
from catapult_ext.experiments import workers
from catapult_ext.experiments.reproduce import cnn_physical_time, grid, grid_claims, outcome
from catapult_ext.experiments.reproduce import kalra_phase_diagram as kalra
from catapult_ext.experiments.reproduce.page import page
from catapult_ext.runs import RunFolderError

CORE = [
    "fc-phases",
    "wrn-phases",
    "cnn-fixed-steps",
    "cnn-physical-time",
    "width-sharpening",
    "linearise-after-catapult",
    "c-act-table",
    "sgd-catapults",
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny products: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_core_is_registered():
    assert set(CORE) <= set(rp.names())


@pytest.mark.parametrize("name", rp.names())
def test_smoke(name, tmp_path):
    lines = []
    done = rp.reproduce(name, "smoke", out=tmp_path / "run", tell=lines.append)
    folder = tmp_path / "run"
    claims = json.loads((folder / "claims.json").read_text())
    assert claims["verdict"] == done.outcome.verdict
    assert len(claims["claims"]) == len(done.outcome.claims) >= 3
    assert len({c["name"] for c in claims["claims"]}) == len(claims["claims"])
    for claim in done.outcome.claims:
        assert claim.predicted
        assert claim.measured
        assert "samples" in claim.on
        assert any(loss in claim.on for loss in ("half", "mse", "cross_entropy"))
        assert claim.holds in (True, False, None)
        assert claim.holds or claim.why, claim.name
    page = (folder / "report.html").read_text()
    for claim in done.outcome.claims:
        assert claim.measured.split("<")[0][:20] in page
    assert "http" not in page.replace("http-equiv", "")
    for panel in done.outcome.panels:
        assert (folder / f"fig_{panel}.png").stat().st_size > 3000
        ElementTree.fromstring((folder / f"fig_{panel}.svg").read_text())
        assert (folder / f"fig_{panel}.pdf").read_bytes().startswith(b"%PDF")
    for table, rows in done.outcome.tables.items():
        text = (folder / f"table_{table}.csv").read_text().splitlines()
        assert len(text) == len(rows) + 1
    assert lines
    # A finished run reports again from its parts, without computing anything.
    again = []
    second = rp.reproduce(name, "smoke", out=folder, tell=again.append)
    assert not again
    assert second.outcome.claims == done.outcome.claims
    assert json.loads((folder / "claims.json").read_text()) == claims


def test_scales_are_complete():
    for name in rp.names():
        held = set(rp.experiment(name).settings)
        assert held | {"real"} == set(rp.SCALES)
    real = [name for name in rp.names() if "real" in rp.experiment(name).settings]
    assert {"paper-fc", "fc-phases", "wrn-phases", "cnn-fixed-steps", "sgd-catapults"} <= set(real)
    assert {"c-act-table", "edge-of-stability"} <= set(real)


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from catapult_ext.experiments import reproduce as rp
folder, rates, workers, at, moment = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
replace, parts = os.replace, 0

def replace_or_die(source, target):
    global parts
    is_part = os.path.basename(os.path.dirname(target)) == "parts"
    parts += is_part
    fatal = is_part and parts == at
    if fatal and moment == "half-written":
        os.truncate(source, os.path.getsize(source) // 2)
    if fatal and moment != "after":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if fatal:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace_or_die
rp.reproduce("fc-phases", "smoke", out=folder, c=tuple(0.5 + 0.5 * i for i in range(rates)),
             seeds=3, train=32, test=20, width=32, steps=6, read_at=2.0,
             equal_time=0.5, workers=workers, tell=lambda line: None)
"""


@pytest.mark.parametrize(
    ("kills", "rates", "workers"),
    [
        (3, 4, 1),
        pytest.param(12, 24, 1, marks=pytest.mark.nightly),
        pytest.param(6, 24, 2, marks=pytest.mark.nightly),
    ],
)
def test_a_killed_sweep_ends_like_an_undisturbed_one(kills, rates, workers, tmp_path):
    """Each kill comes at a counted part of the run: before, half-way through or after its write."""

    def run(folder, workers, at=0, moment=""):
        command = [sys.executable, "-c", KILLED, folder, rates, workers, at, moment]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([str(word) for word in command], env=environment).returncode

    folder, calm, stored = tmp_path / "killed", tmp_path / "calm", 0
    for kill in range(kills):
        at, moment = 1 + kill % 4, ("half-written", "before", "after")[kill % 3]
        code = run(folder, workers, at, moment)
        if workers == 1:
            stored += at if moment == "after" else at - 1
            assert code == -signal.SIGKILL
            assert len(list((folder / "parts").glob("*.json"))) == stored < 3 * rates
        else:  # the other process may finish the run before this one writes its part
            assert code in (-signal.SIGKILL, 0)
    for path, count in ((folder, workers), (calm, 1)):
        assert run(path, count) == 0
    for name in ("claims.json", "summary.json", "table_rates.csv"):
        assert (folder / name).read_bytes() == (calm / name).read_bytes()
    assert len(list((folder / "parts").glob("*.json"))) == 3 * rates + 1  # and lambda_0


def test_workers_share_the_parts_and_store_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 2)  # one thread each, as the run alone has
    rp.reproduce("fc-phases", "smoke", out=tmp_path / "alone")
    parts, own = tmp_path / "shared" / "parts", []

    def tell(line):
        """Wait for a part of the other process before computing the next one."""
        own.append(line.split()[0])
        if own == ["lambda0"]:  # alone, before any helper starts
            return
        (helper,) = multiprocessing.active_children()
        while len(list(parts.glob("*.json"))) == len(own):
            assert helper.is_alive()
            helper.join(0.02)

    rp.reproduce("fc-phases", "smoke", out=tmp_path / "shared", workers=2, tell=tell)
    assert len(own) < 9
    for path in (tmp_path / "alone").rglob("*.*"):
        if path.name not in ("timing.json", "config.json", "report.html", ".lock"):
            other = tmp_path / "shared" / path.relative_to(tmp_path / "alone")
            assert path.read_bytes() == other.read_bytes(), path.name
    times = json.loads((tmp_path / "shared" / "timing.json").read_text())
    assert len(times["seconds"]) == len(times["processor_seconds"]) == 9


def test_an_interrupt_while_a_helper_starts_is_for_its_parent_alone():
    with workers.helped(2, "reproduce", Ranks.tell, ("ready",)) as ranks:
        (helper,) = multiprocessing.active_children()
        os.kill(helper.pid, signal.SIGINT)  # it is importing torch
        while ranks.told("ready") is None:
            assert helper.is_alive()
            ranks.pause()
    assert not helper.is_alive()


def test_a_helper_that_fails_is_named():
    def go_on():
        with workers.helped(2, "reproduce", getattr, ("nonsense",)) as ranks:
            while True:
                ranks.pause()

    with pytest.raises(RuntimeError, match="rank 1 failed: 'Ranks' object"):
        go_on()


def test_compare_names_settings_and_claims_that_differ(tmp_path):
    for name, seeds in (("a", 1), ("b", 2)):
        rp.reproduce("c-act-table", "smoke", out=tmp_path / name, seeds=seeds)
    rows = {r["what"]: r for r in rp.compare(tmp_path / "a", tmp_path / "b")}
    assert rows["setting seeds"]["first"] == "1"
    assert rows["setting seeds"]["same"] == "no"
    assert "c_act relu, 3 hidden" in rows
    same = rp.compare(tmp_path / "a", tmp_path / "a")
    assert {r["same"] for r in same} == {"yes"}
    with pytest.raises(RunFolderError, match="holds no finished reproduction"):
        rp.compare(tmp_path / "a", tmp_path)


def test_another_loss():
    done = rp.reproduce("fc-phases", "smoke", loss="cross_entropy", seeds=1, c=(0.5,), steps=2)
    data = cx.data.digits(train=48, test=100)
    model = cx.models.fully_connected(64, 10, width=48, depth=3, seed=0)
    top = cx.eigsh(cx.GGN(model, nn.CrossEntropyLoss(), data.train), tol=1e-6).eigenvalues
    assert 0.5 / done.outcome.tables["rates"][0]["eta"] == pytest.approx(top.item(), rel=5e-3)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="name must be one of paper-fc"):
        rp.reproduce("fig-1")
    with pytest.raises(
        ValueError, match="scale of fc-phases must be one of smoke, cpu, real, full, got 'gpu'"
    ):
        rp.reproduce("fc-phases", "gpu")  # no such scale
    with pytest.raises(ValueError, match="workers > 1 needs out"):
        rp.reproduce("fc-phases", "smoke", workers=2)
    with pytest.raises(TypeError, match=r"settings of fc-phases are data, train, .* got wdith"):
        rp.reproduce("fc-phases", "smoke", wdith=3)
    rp.reproduce("c-act-table", "smoke", out=tmp_path / "run")
    with pytest.raises(RunFolderError, match="another configuration"):
        rp.reproduce("c-act-table", "smoke", out=tmp_path / "run", seeds=1)
    rp.reproduce("c-act-table", "smoke", out=tmp_path / "run", seeds=1, fresh=True)


def fake(c, seed=0, diverged=-1, lam=0.5, peak=1.0, rose=-1, accuracy=0.5, inactive=0.5):
    """A record as descent.train returns them, with lambda_0 = 1."""
    row = {"step": 10, "time": 10 * c, "mark": "end", "lambda": lam, "train_loss": 0.1}
    row |= {"test_accuracy": accuracy, "inactive": inactive, "worst_inactive": inactive}
    return {
        "seed": seed, "eta": c, "c": c, "lambda0": 1.0, "diverged_at": diverged, "rose_at": rose,
        "loss0": 1.0, "loss_peak": peak, "loss_peak_at": 3, "loss_steps": [0, 10],
        "loss": [1.0, 0.1], "probes": [row],
    }  # fmt: skip


def test_bound_claim_takes_the_worst_seed():
    good = grid.by_rate([fake(3.0, 0, lam=0.5), fake(3.0, 1, lam=0.6)])
    assert grid_claims.claim_bound(good).holds is True
    bad = grid.by_rate([fake(3.0, 0, lam=0.5), fake(3.0, 1, lam=0.7)])
    assert grid_claims.claim_bound(bad).holds is False
    lazy = grid.by_rate([fake(1.0, lam=5.0)])
    assert grid_claims.claim_bound(lazy).holds is None


def test_largest_stable_stops_at_the_first_divergence_or_dead_net():
    records = [fake(2.0), fake(4.0, diverged=3), fake(8.0)]
    assert grid.largest_stable(records) == [2.0]
    assert grid.largest_stable([fake(2.0), fake(4.0, inactive=0.99)]) == [2.0]
    assert grid.largest_stable([fake(2.0), fake(4.0), fake(2.0, 1, diverged=1)]) == [4.0, 0.0]


def test_lazy_claim():
    calm = [fake(1.0), fake(1.0, 1), fake(3.0, peak=5.0, rose=1)]
    assert grid_claims.claim_lazy(calm).holds is True
    rose = [*calm, fake(1.0, 2, peak=1.1, rose=2)]
    assert grid_claims.claim_lazy(rose).holds is False
    assert grid_claims.claim_lazy(rose, slack=0.2).holds is True
    lost = [*calm, fake(1.0, 2, diverged=4)]  # one seed of three is enough
    assert grid_claims.claim_lazy(lost, slack=0.2).holds is False
    assert grid_claims.claim_lazy(calm[2:]).holds is None


def pairs(*runs):
    """Two seeds of every (c, accuracy), 0.01 apart."""
    return [fake(c, i, accuracy=a + 0.01 * i) for c, a in runs for i in range(2)]


def test_best_claim():
    assert grid_claims.claim_best(grid.by_rate(pairs((1.0, 0.8), (3.0, 0.9))), 3.0).holds is True
    assert grid_claims.claim_best(grid.by_rate(pairs((1.0, 0.9), (3.0, 0.8))), 3.0).holds is False
    # A rate that diverged for some seed does not win.
    lost = [fake(3.0, accuracy=0.9), fake(3.0, 1, diverged=4)]
    rows = grid.by_rate([*pairs((1.0, 0.8), (2.5, 0.4)), *lost])
    assert grid_claims.claim_best(rows, 3.0).holds is False
    assert grid_claims.claim_best(grid.by_rate([*pairs((1.0, 0.8)), *lost]), 3.0).holds is None
    one = grid_claims.claim_best(
        grid.by_rate([fake(1.0, accuracy=0.2), fake(3.0, accuracy=0.9)]), 3.0
    )
    assert one.holds is None
    assert "one seed" in one.why


def test_a_best_accuracy_within_the_noise_decides_nothing():
    def claim(*above):
        below = [fake(1.0, i, accuracy=a) for i, a in enumerate((0.90, 0.92))]
        high = [fake(3.0, i, accuracy=a) for i, a in enumerate(above)]
        return grid_claims.claim_best(grid.by_rate(below + high), 3.0)

    assert claim(0.91, 0.93).holds is None  # +0.01 with a standard error of 0.014
    assert "+0.0100" in claim(0.91, 0.93).why
    assert claim(0.95, 0.97).holds is True
    assert claim(0.80, 0.82).holds is False


def test_the_reason_goes_where_the_claim_holds():
    assert outcome.Claim("a", "p", "m", True, "noise").why == ""
    assert outcome.Claim("a", "p", "m", False, "noise").why == "noise"


def test_unequal_accuracies_are_blamed_on_what_the_losses_show():
    def claim(accuracy, loss):
        rows = grid.by_rate([fake(1.0, accuracy=0.9), fake(8.0, accuracy=accuracy)])
        rows[1]["train_loss"] = loss
        return cnn_physical_time._claim_flat(rows, "test_accuracy", "then")

    assert claim(0.89, 0.1).holds is True
    assert "c = 8 has not converged" in claim(0.8, 0.3).why
    assert claim(0.8, 0.1).why == cnn_physical_time.UNEVEN
    assert claim(0.8, 0.1).holds is False


def test_kalra_claims_look_at_every_width():
    def rows(*values):
        widths = zip((128, 256, 512), values, strict=True)
        return [{"width": w, "c_max": v, "published_c_max": None} for w, v in widths]

    assert kalra._claim_max(rows(19.0, 14.0, 8.0), 8).holds is True
    narrow = kalra._claim_max(rows(24.0, 14.0, 11.0), 8)
    assert narrow.holds is False
    assert "width 128 is narrow for depth 8" in narrow.why
    wide = kalra._claim_max(rows(14.0, 14.0, 7.0), 8)
    assert wide.holds is False
    assert "narrow" not in wide.why
    falls = [{"width": w, "c_loss": v, "published_c_loss": None} for w, v in ((1, 5), (2, 3))]
    assert kalra._claim_falls(falls, "c_loss").holds is True
    again = [*falls, {"width": 3, "c_loss": 3.5, "published_c_loss": None}]
    assert (
        kalra._claim_falls(again, "c_loss").holds is False
    )  # lower than at first, but not falling


def test_page_merges_errors_into_their_column():
    rows = [{"c": 1.0, "accuracy": 0.5, "accuracy_se": 0.01, "free_se": 2.0}]
    text = page("t", ["a < b"], "run it", [], {"p": b"png"}, {"rates": rows}, {"Facts": {"c": [1]}})
    assert "0.5 \u00b1 0.01" in text
    assert '<th scope="col">free se</th>' in text
    assert "accuracy se" not in text
    assert "a &lt; b" in text


def test_statistics():
    assert outcome.mean([1.0, None, 3.0]) == 2.0
    assert outcome.mean([None]) is None
    assert outcome.standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert outcome.standard_error([1.0]) is None
    assert (outcome.median([3, 1, 2]), outcome.median([1, 2, 3, 4])) == (2, 2.5)
    assert outcome.correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert outcome.correlation([1, 2, 3], [1, 1, 1]) is None
    b, error = outcome.slope([0, 1, 2], [1, 3, 5])
    assert (b, error) == (pytest.approx(2.0), pytest.approx(0.0))
