"""Claims about widths, equal times and linear continuations: true, false, and too little tested."""

from __future__ import annotations

import pytest

from catapult_ext.experiments.reproduce import (
    cnn_physical_time,
    kalra_phase_diagram,
    linearise_after_catapult,
    width_sharpening,
)


def width(units, c_proj=2.2, c_loss=2.5, gap=0.05, seeds=5):
    row = {"width": units, "seeds": seeds, "c_proj": c_proj, "c_loss": c_loss}
    return row | {"hessian_gap": gap, "lambda0": 1.0}


def test_thresholds_fall_with_the_width():
    def claim(*rows):
        return width_sharpening._claim_falls(list(rows), "c_proj", "name").holds

    assert claim(width(256, 2.4), width(512, 2.25), width(1024, 2.1)) is True
    assert claim(width(256, 2.1), width(512, 2.25), width(1024, 2.4)) is False
    assert claim(width(256, 2.4), width(512, 2.4)) is False  # it does not fall
    assert claim(width(256)) is None
    assert claim(width(256, 2.4, seeds=1), width(512, 2.25, seeds=1)) is None
    assert claim(width(256, 2.4), width(512, None)) is None


def test_thresholds_at_two_widths():
    def claims(*rows):
        return [c.holds for c in width_sharpening._claims_values(list(rows))]

    assert claims(width(512, 2.25), width(2048, 2.05)) == [True, True]
    assert claims(width(512, 3.0), width(2048, 2.5)) == [False, False]
    assert claims(width(512, None), width(2048, 2.05, seeds=1)) == [None, None]


def test_a_linearised_net_crosses_at_two():
    def claim(cs, *rises):
        return width_sharpening._claim_linear({"c": cs, "rises": rises}).holds

    assert claim((1.96, 1.98, 2.02, 2.04), False, False, True, True) is True
    assert claim((1.96, 1.98, 2.02, 2.04), False, True, True, True) is False
    assert claim((1.96, 1.98, 2.02, 2.04), False, False, False, True) is False
    assert claim((2.02, 2.04), True, True) is None


def test_the_gap_to_the_hessian_shrinks():
    def claim(*gaps):
        rows = [width(256 * 2**i, gap=gap) for i, gap in enumerate(gaps)]
        return width_sharpening._claim_gap(rows).holds

    assert claim(0.05, 0.025, 0.012) is True
    assert claim(0.012, 0.025, 0.05) is False
    assert claim(0.05, 0.01, 0.045) is False  # scatter
    assert claim(0.05, 0.025) is None  # a line through two points
    assert claim(0.05) is None


def timed(c=3.0, lam=0.5, before=0.9, after=0.9, **more):
    """A live run of cnn-physical-time with lambda_0 = 1."""
    row = {"step": 9, "time": 9 * c, "lambda": lam, "train_loss": 0.1, "worst_inactive": 0.5}
    record = {"seed": 0, "eta": c, "c": c, "lambda0": 1.0, "diverged_at": -1, "loss0": 1.0}
    record |= {"loss": [1.0, 0.1], "loss_peak": 1.0, "rose_at": -1}
    marks = (("end", before), ("final", after))
    return record | {"probes": [row | {"mark": m, "test_accuracy": a} for m, a in marks]} | more


def test_a_common_final_rate_changes_little():
    def claim(*runs):
        return cnn_physical_time._claim_decay(list(runs)).holds

    assert claim(timed(), timed(after=0.905)) is True
    assert claim(timed(after=0.95), timed(after=0.96)) is False
    assert claim(timed()) is None
    assert claim(timed(diverged_at=3), timed(diverged_at=3)) is None


def test_curvature_does_not_predict_accuracy():
    def claim(*accuracies):
        runs = [timed(lam=0.1 * (i + 1), before=a) for i, a in enumerate(accuracies)]
        return cnn_physical_time._claim_no_correlation(runs).holds

    assert claim(0.8, 0.9, 0.8, 0.9, 0.8, 0.9, 0.8, 0.9) is True
    assert claim(0.9, 0.88, 0.86, 0.84, 0.82, 0.8) is False
    assert claim(0.8, 0.9, 0.8) is None


def test_flat_needs_nets_that_learnt():
    def claim(accuracy, other):
        rows = [
            {"c": c, "diverged": 0, "dead": 0, "train_loss": 0.1, "a": a, "a_se": 0.002}
            for c, a in ((1.5, accuracy), (6.0, other))
        ]
        return cnn_physical_time._claim_flat(rows, "a", "then").holds

    assert claim(0.9, 0.91) is True
    assert claim(0.9, 0.8) is False
    assert claim(0.2, 0.21) is None


def continued(nonlinear=0.8, linear=0.8, then=1.5, diverged=-1, dead=False, start=True):
    """One cell of linearise-after-catapult."""
    if diverged >= 0 or dead:
        nonlinear = linear = then = None
    return {
        **{"diverged_at": diverged, "dead": dead, "eta_lambda": then, "nonlinear": nonlinear},
        **{"linear": linear, "linear_diverged": None if then is None else linear is None},
        "start_diverged": start,
    }


def rates(*cells, c=3.0):
    return [linearise_after_catapult._row(c, list(cells))]


def test_the_net_is_linear_after_its_catapult():
    def claim(*cells):
        return linearise_after_catapult._claim_same(rates(*cells)).holds

    assert claim(continued(0.80, 0.80), continued(0.82, 0.819)) is True
    assert claim(continued(0.80, 0.60), continued(0.81, 0.61)) is False
    assert claim(continued(), continued(linear=None), continued()) is False  # it diverges
    assert claim(continued()) is None
    dead = continued(dead=True)
    assert claim(dead, dead) is None
    assert claim(continued(), continued(), dead) is None


def test_linear_from_the_start_diverges():
    claim = linearise_after_catapult._claim_start
    assert claim(rates(continued(), continued())).holds is True
    assert claim(rates(continued(), continued(start=False))).holds is False
    assert claim(rates(continued(start=False), c=1.0)).holds is None


def test_settled_when_it_is_linearised():
    claim = linearise_after_catapult._claim_settled
    assert claim(rates(continued(then=1.5), continued(then=1.9))).holds is True
    assert claim(rates(continued(then=1.5), continued(then=2.4))).holds is False
    assert claim(rates(continued(diverged=3), continued(dead=True))).holds is None


@pytest.mark.parametrize(
    ("cells", "holds"),
    [
        ([(2.5, 3.0, 3.5, 12.0)], True),
        ([(2.5, 3.0, 3.5, 12.0), (3.5, 3.0, 4.0, 12.0)], False),
        ([(2.5, 3.0, None, 12.0)], None),
        ([], None),
    ],
)
def test_order_of_the_thresholds(cells, holds):
    names = kalra_phase_diagram.THRESHOLDS
    held = [dict(zip(names, values, strict=True)) for values in cells]
    assert kalra_phase_diagram._claim_order(held).holds is holds
