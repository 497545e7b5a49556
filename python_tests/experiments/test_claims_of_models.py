"""Claims about quadratic models, norms, cycles and warm-ups: true, false, too little tested."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from catapult_ext.experiments.reproduce import (
    meltzer_sparsity,
    progressive_sharpening,
    quadratic_models,
    warmup,
)


def one(c, bounded=None, peak=5.0, eta_lambda=1.0, width=100):
    bounded = c < 4 if bounded is None else bounded
    return {"c": c, "bounded": bounded, "width": width} | {
        "peak": peak if bounded else None,
        "eta_lambda": eta_lambda if bounded else None,
    }


def test_one_sample_diverges_at_four():
    claim = quadratic_models._claim_boundary
    assert claim([one(1.0), one(3.9), one(4.1)]).holds is True
    assert claim([one(1.0), one(3.9, bounded=False), one(4.1)]).holds is False
    assert claim([one(1.0), one(3.9)]).holds is None


def test_the_peak_grows_with_the_width():
    settings = SimpleNamespace(one_c=(1.0, 3.0), widths=(100, 200, 400))

    def claim(power, widths=settings.widths):
        ones = [one(3.0, peak=width**power, width=width) for width in widths]
        return quadratic_models._claim_peak(settings, ones).holds

    assert claim(0.95) is True
    assert claim(0.5) is False
    assert claim(0.95, (100,)) is None


def test_one_sample_settles_below_two():
    claim = quadratic_models._claim_settled
    assert claim([one(3.0, eta_lambda=1.5)]).holds is True
    assert claim([one(3.0, eta_lambda=2.5)]).holds is False
    assert claim([one(1.0), one(4.5)]).holds is None


def path(where, peaks, drops, edge=3.0, model="net", rest=1e-9):
    row = {"seed": 0, "where": where, "edge": edge, "c": 2.5, "model": model, "rest_change": rest}
    row |= dict(zip(("peak_1", "peak_2"), peaks, strict=True))
    return row | dict(zip(("drop_1", "drop_2"), drops, strict=True))


def test_one_catapult_between_the_edges():
    claim = quadratic_models._claim_first
    good = path("between", (9.0, 1.0), (0.5, 1.0))
    assert claim([good]).holds is True
    assert claim([good, path("between", (9.0, 3.0), (0.5, 1.0))]).holds is False
    assert claim([path("above", (9.0, 1.0), (0.5, 1.0))]).holds is None


def test_two_catapults_above_both_edges():
    claim = quadratic_models._claim_both
    good = path("above", (9.0, 4.0), (0.5, 0.6))
    assert claim([good]).holds is True
    assert claim([good, path("above", (9.0, 4.0), (0.5, 0.99))]).holds is False
    assert claim([path("above", (9.0, 4.0), (0.5, 0.6), edge=4.5)]).holds is None


def test_other_directions_stay():
    claim = quadratic_models._claim_rest
    still = path("above", (9.0, 4.0), (0.5, 0.6), model="quadratic")
    assert claim([still]).holds is True
    assert claim([still | {"rest_change": 1e-3}]).holds is False
    assert claim([still | {"model": "net"}]).holds is None


def test_models_agree_below_the_edge():
    claim = quadratic_models._claim_below
    same = {"c": 1.0, "net": 0.1, "linear": 0.101, "quadratic": 0.1}
    assert claim([same]).holds is True
    assert claim([same | {"linear": 0.2}]).holds is False
    assert claim([same | {"c": 3.0}]).holds is None


def thinned(c, norm=0.9, large=5, falls=5, dead=False, diverged=False, share=0.5):
    row = {"depth": 1, "c": c, "norm_ratio": norm, "large": large, "falls": falls, "seed": 0}
    return row | {"dead": dead, "diverged": diverged, "inactive": share, "eta_lambda": 1.0}


def test_the_catapult_lowers_the_norm():
    claim = meltzer_sparsity._claim_norm
    assert claim([thinned(3.0), thinned(8.0, norm=2.0)]).holds is True
    assert claim([thinned(3.0), thinned(3.5, norm=1.2)]).holds is False
    assert claim([thinned(8.0)]).holds is None
    assert claim([thinned(3.0, norm=1.2, dead=True)]).holds is None


def test_the_norm_falls_while_the_loss_is_large():
    claim = meltzer_sparsity._claim_law
    assert claim([thinned(3.0)]).holds is True
    assert claim([thinned(3.0, falls=2)]).holds is False
    assert claim([thinned(3.0, large=0, falls=0)]).holds is None


def test_the_curvature_ends_below_the_edge():
    def claim(*runs):
        rows = [meltzer_sparsity._row(1, c, list(runs)) for c in sorted({r["c"] for r in runs})]
        return meltzer_sparsity._claim_edge(rows).holds

    assert claim(thinned(3.0)) is True
    assert claim(thinned(3.0) | {"eta_lambda": 2.5}) is False
    assert claim(thinned(3.0, dead=True)) is None  # its low curvature proves nothing


def test_dead_nets_are_not_called_sparse():
    claim = meltzer_sparsity._claim_sparsity
    live = [thinned(c, share=s) for c, s in ((1.0, 0.5), (2.5, 0.55), (4.0, 0.56), (5.0, 0.54))]
    dead = [thinned(c, share=0.99, dead=True) for c in (8.0, 10.0, 12.0)]
    assert claim(1, live + dead).holds is False
    assert claim(1, dead).holds is None


def cycle(slope=1.0, highest=2.5, peak=4.0, lowest=1.5):
    row = {"slope": slope, "correlation": 0.97, "highest": highest, "loss_peak": peak}
    return row | {"lowest_after": lowest}


def test_the_restoring_force():
    claim = progressive_sharpening._claim_restoring
    assert claim([cycle(0.98)]).holds is True
    assert claim([cycle(0.98), cycle(0.5)]).holds is False
    assert claim([cycle(None)]).holds is None


def test_the_cycle_of_self_stabilisation():
    claim = progressive_sharpening._claim_four_steps
    assert claim([cycle()]).holds is True
    assert claim([cycle(), cycle(lowest=2.2)]).holds is False
    assert claim([cycle(highest=None)]).holds is None


def warmed(warm, largest, ended=2):
    row = {"warmup": warm, "largest_c": largest, "lowest": largest, "highest": largest}
    return row | {"ended": ended}


def test_longer_warmups_tolerate_more():
    claim = warmup._claim_largest
    assert claim([warmed(1, 16), warmed(64, 128)]).holds is True
    assert claim([warmed(1, 128), warmed(64, 16)]).holds is False
    assert claim([warmed(1, 16), warmed(64, 16)]).holds is False
    assert claim([warmed(1, 16)]).holds is None
    assert claim([warmed(1, 512, 0), warmed(64, 512, 0)]).holds is None  # the end of the grid


def warm(c, warmup=1, end=1.5, accuracy=0.9, dead=False, diverged=False):
    row = {"seed": 0, "c": c, "warmup": warmup, "eta_lambda": [3.0, end], "accuracy": accuracy}
    return row | {"dead": dead, "diverged": diverged, "peak": 1.0}


def test_dead_nets_do_not_train():
    settings = SimpleNamespace(seeds=1, shown=3.0)
    runs = [warm(2.0), warm(4.0), warm(8.0, dead=True), warm(16.0), warm(32.0, diverged=True)]
    row = warmup._row(settings, 1, runs)
    assert (row["largest_c"], row["ended"], row["peak_at_shown"]) == (4.0, 1, None)


def test_sharpness_comes_down_to_the_edge():
    claim = warmup._claim_sharpness
    assert claim([warm(4.0)]).holds is True
    assert claim([warm(4.0), warm(8.0, end=3.0)]).holds is False
    assert claim([warm(4.0, dead=True), warm(1.0)]).holds is None


def test_the_target_sets_the_accuracy():
    settings = SimpleNamespace(exponents=(1.0, 2.0), seeds=1, warmups=(1, 64))

    def claim(*accuracies):
        pairs = [(c, w) for c in (2.0, 4.0) for w in settings.warmups]
        runs = [warm(c, w, accuracy=a) for (c, w), a in zip(pairs, accuracies, strict=True)]
        return warmup._claim_accuracy(settings, runs).holds

    assert claim(0.6, 0.61, 0.9, 0.91) is True
    assert claim(0.6, 0.9, 0.61, 0.91) is False
    lost = [warm(2.0), warm(4.0, diverged=True)]
    assert warmup._claim_accuracy(settings, lost).holds is None
    alone = SimpleNamespace(exponents=(1.0, 2.0), seeds=1, warmups=(1,))
    assert warmup._claim_accuracy(alone, [warm(2.0), warm(4.0)]).holds is None


@pytest.mark.parametrize(
    ("searches", "holds"),
    [
        ([(7.9, 15), (3.9, 16)], [True, True]),
        ([(1.2, 15), (3.9, 40)], [False, False]),
        ([], [None, None]),
    ],
)
def test_forward_passes_find_the_critical_rate(searches, holds):
    found = [{"c": c, "passes": passes} for c, passes in searches]
    assert [c.holds for c in warmup._claims_search(found)] == holds
