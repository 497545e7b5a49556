"""Every claim of edge-of-stability can hold, fail and stay undecided."""

from __future__ import annotations

import pytest

from catapult_ext.experiments.reproduce import edge_claims as judged
from catapult_ext.experiments.reproduce import edge_of_stability as eos


def run(optimizer="gd", rate=0.1, chi=1.2, zeta=0.99, readings=20, diverged=False, loss="half_mse"):
    return {
        "loss": loss, "optimizer": optimizer, "rate": rate, "chi": chi, "zeta": zeta,
        "readings": readings, "diverged": diverged,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("side", "runs", "holds"),
    [
        ("above", [run(), run(chi=1.6, zeta=1.02), run(chi=0.8, zeta=0.1)], True),
        ("above", [run(), run(chi=1.6, zeta=0.9)], False),
        ("above", [run(chi=1.01, zeta=0.9)], None),  # chi is at 1 as well
        ("above", [run(chi=0.8)], None),
        ("below", [run(chi=0.8), run(zeta=0.1)], True),
        ("below", [run(chi=0.8, zeta=0.6)], False),
        ("below", [], None),
    ],
)
def test_realized_edge(side, runs, holds):
    claim = judged.claim_realized("half_mse", runs, side)
    assert claim.holds is holds
    assert claim.holds or claim.why


@pytest.mark.parametrize(
    ("chi", "holds"),
    [([0.9, 1.1, 1.5], True), ([0.9, 1.1, 1.0], False), ([0.9], None), ([], None)],
)
def test_chi_grows(chi, holds):
    runs = [run(rate=10.0**i, chi=c) for i, c in enumerate(chi)]
    runs.append(run("adam", 1e-9, 5.0))
    assert judged.claim_grows("half_mse", runs[::-1]).holds is holds


@pytest.mark.parametrize(
    ("gd", "ball", "holds"), [(1.6, 0.96, True), (1.02, 0.8, False), (1.6, None, None)]
)
def test_heavy_ball_hovers_closer(gd, ball, holds):
    runs = [run(chi=gd), run(chi=1.0, rate=0.01)]
    runs += [] if ball is None else [run("heavy-ball", chi=ball)]
    assert judged.claim_apart("half_mse", runs).holds is holds


def pooled(**chi):
    names = {name.replace("_", "-"): value for name, value in chi.items()}
    return [
        {"optimizer": n, "chi": c, "published_chi": judged.PUBLISHED[n], "readings": 9 if c else 0}
        for n, c in names.items()
    ]


def test_order_of_the_optimizers():
    same = pooled(heavy_ball=0.9, adam=0.91, nesterov=1.0, gd=1.1, adagrad=2.0)
    assert judged.claim_order(same).holds is True
    assert "tau 1 over 5" in judged.claim_order(same).measured
    turned = pooled(heavy_ball=2.0, adam=0.91, nesterov=1.0, gd=1.1, adagrad=0.5)
    assert judged.claim_order(turned).holds is False
    short = [r | {"readings": 2} if r["optimizer"] == "adagrad" else r for r in turned]
    assert "over 4 optimizers" in judged.claim_order(short).measured
    few = pooled(heavy_ball=0.9, adam=0.91, gd=None, nesterov=1.0)
    assert judged.claim_order(few).holds is None


def test_kendall_counts_pairs():
    assert judged.kendall([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1
    assert judged.kendall([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == pytest.approx(1 / 3)
    assert judged.kendall([1.0, 1.0], [1.0, 2.0]) == 0
    assert judged.kendall([1.0], [1.0]) is None


def test_short_and_divergent_runs_are_not_judged():
    short = [run(readings=2, zeta=0.5), run(diverged=True, zeta=0.5), run(loss="bce", zeta=0.5)]
    assert judged.claims("half_mse", short, [])[0].holds is None
    assert judged.claims("half_mse", [*short, run()], [])[0].holds is True


def test_rows_are_medians_near_the_edge():
    record = {
        "loss": [2.0, 1.0, None], "at": [0, 1, 2], "chi": [0.1, 0.9, 1.5], "diverged": False,
        "zeta": [0.3, 0.5, 0.9],
    }  # fmt: skip
    row = eos.row("half_mse", "gd", 0.1, record)
    assert (row["chi"], row["zeta"], row["readings"], row["loss_end"]) == (1.2, 0.7, 2, 1.0)
    other = record | {"chi": [0.8, 0.8, 0.8]}
    lost = record | {"diverged": True}
    found = eos.pool("cross_entropy", "gd", [record, other, lost])
    assert (found["chi"], found["runs_at_the_edge"]) == (0.8, 2)
    assert found["published_chi"] == 1.124
    assert eos.pool("half_mse", "gd", [lost])["chi"] is None


def test_a_decade_of_rates():
    assert eos.decade(0.3, 3) == pytest.approx([0.03, 0.3 / 10**0.5, 0.3])
    assert eos.decade(0.3, 1) == [0.3]


def test_settings_that_cannot_be():
    from catapult_ext.experiments import reproduce as rp

    with pytest.raises(ValueError, match="optimizers of edge-of-stability must be some of gd, "):
        rp.reproduce("edge-of-stability", "smoke", optimizers=("lion",))
    with pytest.raises(ValueError, match=r"pool = 3 of edge-of-stability needs images .*8, 8"):
        rp.reproduce("edge-of-stability", "smoke", pool=3)
