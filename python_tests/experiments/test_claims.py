"""Claims are undecided where nothing was tested, and fail where it is not so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from catapult_ext.experiments.reproduce import (
    c_act_table,
    meltzer_sparsity,
    progressive_sharpening,
    quadratic_models,
    sgd_catapults,
    warmup,
)


def models(c, linear=3, quadratic=0, net=0, test=0.1):
    """One rate of quadratic-models, three seeds."""
    lost = {"linear_diverged": linear, "quadratic_diverged": quadratic, "net_diverged": net}
    return {"c": c, "seeds": 3, "net": test, "quadratic": test, **lost}


def test_linear_models_diverge():
    claim = quadratic_models._claim_linear
    assert claim([models(1.0, 0), models(3.0)]).holds is True
    assert claim([models(1.0, 0), models(3.0, 2)]).holds is False
    assert claim([models(3.0, net=1)]).holds is False
    assert claim([models(1.0, 0)]).holds is None


def test_better_above():
    claim = quadratic_models._claim_above
    assert claim([models(1.0), models(3.0, test=0.05)]).holds is True
    assert claim([models(1.0), models(3.0, test=0.2)]).holds is False
    assert claim([models(3.0)]).holds is None


def test_pure_quadratic_bound():
    def claim(*stable):
        runs = [{"c": [2.0, 3.0, 5.0], "stable": list(stable), "bound": 4.0}]
        return meltzer_sparsity._claim_pure(runs).holds

    assert claim(True, True, False) is True
    assert claim(True, False, False) is False
    beyond = {"c": [5.0], "stable": [False], "bound": 4.0}
    assert meltzer_sparsity._claim_pure([beyond]).holds is None


def test_sparsity_needs_an_error():
    def claim(*shares):
        rates = zip((1.0, 2.5, 4.0, 8.0), shares, strict=False)
        live = {"depth": 1, "diverged": False, "dead": False}
        rows = [live | {"c": c, "inactive": share} for c, share in rates]
        return meltzer_sparsity._claim_sparsity(1, rows).holds

    assert claim(0.5, 0.6, 0.7, 0.8) is True
    assert claim(0.5, 0.8, 0.7, 0.6) is False
    assert claim(0.5, 0.6, 0.7) is None  # a line through two points


@pytest.mark.parametrize(
    ("rows", "holds"),
    [
        ([(2.04, 400)], True),
        ([(2.04, 400), (2.5, 300)], False),
        ([(2.04, 400), (2.5, 0)], True),  # reached the edge with its last reading
        ([(2.0, 0)], None),
        ([(None, None)], None),
        ([(2.04, 400), (2.5, 300, 2.0)], True),  # a larger rate may lie higher
        ([(2.5, 400), (2.04, 300, 2.0)], False),
    ],
)
def test_hovering_takes_time(rows, holds):
    seen = [
        {"mean": mean, "steps_there": steps, "ratio": ratio[0] if ratio else 4.0}
        for mean, steps, *ratio in rows
    ]
    assert progressive_sharpening._claim_hovers(seen, "name", "2/eta").holds is holds


@pytest.mark.parametrize(
    ("first", "last", "holds"),
    [
        ((2.2, 0.1), (1.0, 0.02), True),
        ((1.0, 0.02), (2.2, 0.1), False),
        ((2.2, 1.1), (1.0, 0.02), None),  # within two standard errors
        ((2.2, None), (1.0, None), None),  # one seed
    ],
)
def test_milder_catapults(first, last, holds):
    rows = [
        {"warmup": w, "peak_at_shown": peak, "peak_se": error}
        for w, (peak, error) in ((0, first), (64, last))
    ]
    settings = SimpleNamespace(shown=3)
    assert warmup._claim_milder(settings, rows).holds is holds
    assert warmup._claim_milder(settings, rows[:1]).holds is None


def entry(value=4.5, seeds=5, dead=0, activation="relu", depth=1):
    row = {"activation": activation, "depth": depth, "c_act": value, "seeds": seeds, "dead": dead}
    return row | {"lowest": value, "highest": value, "open_above": 0, "bounded": 26.5}


def test_entries_of_the_table_by_activation():
    def claim(**more):
        return c_act_table.claim_entry(entry(**more), 1.05).holds

    assert claim() is True
    assert claim(value=9.0) is False
    assert claim(value=None) is None
    assert claim(seeds=1) is None
    assert claim(value=3.0, dead=4) is None  # dead nets end it: no boundary of divergence
    assert claim(value=4.5, dead=1) is True
    assert claim(value=10.2, depth=3) is True


def test_dead_nets_end_what_is_stable_in_the_table():
    rates = [(3.0, -1, 0.5), (4.0, -1, 0.97), (5.0, -1, 0.99), (6.0, 7, None)]
    found = [
        {"c": c, "diverged_at": at, "inactive": share, "loss_ratio": 0.5, "eta_lambda": 1.0}
        for c, at, share in rates
    ]
    seed = c_act_table._seed(found)
    assert (seed["last_stable"], seed["first_unstable"], seed["dies"]) == (3.0, 4.0, True)
    assert seed["last_bounded"] == 5.0
    row = c_act_table._row({"activation": "relu", "depth": 1, "seeds": [seed, seed]})
    assert (row["c_act"], row["dead"], row["bounded"]) == (3.0, 2, 5.0)


def test_activations_differ():
    claim = c_act_table.claim_strong
    assert claim([entry(4.0), entry(11.0, activation="tanh")]).holds is True
    assert claim([entry(4.0), entry(4.5, activation="tanh")]).holds is False
    assert claim([entry(4.0)]).holds is None


def full_batch(start=1.0, peak=9.0, top=(0.9, 8.9), ends=0.5, diverged=False):
    """One full-batch run of sgd-catapults: lowest loss, peak, end."""
    rows = [
        {"step": 0, "loss": start, "top": top[0], "eta_lambda": 4.0},
        {"step": 1, "loss": peak, "top": top[1], "eta_lambda": 3.0},
        {"step": 2, "loss": 0.1, "top": 0.05, "eta_lambda": ends},
    ]
    return {"rows": rows, "diverged": diverged}


def test_spikes_live_in_the_top_space():
    def claims(*runs):
        return [c.holds for c in sgd_catapults._claims_space(list(runs), 5)]

    assert claims(full_batch()) == [True, True]
    assert claims(full_batch(top=(0.9, 2.0), ends=4.5)) == [False, False]
    assert claims(full_batch(peak=0.9, top=(0.9, 0.8), diverged=True)) == [None, None]


def batches(above, spiked_above, below, spiked_below, size=8, spread=0.2):
    steps = above + below
    return {
        **{"batch": size, "steps": steps, "above_critical": above, "spiked_above": spiked_above},
        **{"spiked_below": spiked_below, "relative_spread_of_lambda": spread},
        "spikes_per_step": (spiked_above + spiked_below) / steps,
    }


def test_steps_above_their_own_threshold_spike():
    claim = sgd_catapults._claim_predicts
    assert claim([batches(20, 15, 30, 1)]).holds is True
    assert claim([batches(20, 5, 30, 0)]).holds is False
    assert claim([batches(20, 15, 30, 9)]).holds is False
    assert claim([batches(0, 0, 30, 0)]).holds is None


def test_smaller_batches_catapult_more():
    claim = sgd_catapults._claim_smaller
    few, many = batches(1, 0, 40, 0, 128, 0.05), batches(20, 15, 30, 1)
    assert claim([many, few]).holds is True
    assert claim([few, many]).holds is False
    assert claim([many]).holds is None
    assert claim([few, few]).holds is None
