"""Claims are undecided where nothing was tested, and fail where it is not so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from catapult_ext.experiments.reproduce import (
    meltzer_sparsity,
    progressive_sharpening,
    quadratic_models,
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
        rows = [{"depth": 1, "c": c, "inactive": share} for c, share in rates]
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
    ],
)
def test_hovering_takes_time(rows, holds):
    seen = [{"mean": mean, "steps_there": steps} for mean, steps in rows]
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
