"""paper-fc: the published numbers are met, missed, or undecided where too little was tested."""

from __future__ import annotations

import dataclasses

import pytest

from catapult_ext.experiments import reproduce as rp
from catapult_ext.experiments.reproduce import paper_fc
from catapult_ext.experiments.reproduce.brackets import Bracket, listed, within


def seeds(*pairs):
    return [Bracket(i, low, high) for i, (low, high) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ({2048: [0.336, 0.294, 0.320]}, True),
        ({2048: [0.42, 0.41, 0.43]}, False),
        ({2048: [0.32, 0.32]}, None),  # two seeds
        ({512: [0.32, 0.32, 0.32]}, None),  # another width
    ],
)
def test_values(values, holds):
    assert paper_fc.claim_value("name", values, 0.32, 0.02).holds is holds
    assert paper_fc.claim_value("name", values, 0.32, 0.02, "data = digits").holds is None


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (seeds((12, 13), (12, 13), (12, 13)), True),
        (seeds((12, 13), (13, 14), (11, 12)), True),
        (seeds((8, 10), (8, 10), (8, 10)), False),
        (seeds((12, 20), (12, 20), (12, 20)), None),  # the rates lie too far apart
        (seeds((14, None), (14, None), (12, 13)), None),  # stable at the largest rate 14
        (seeds((16, None), (16, None), (16, None)), False),
        (seeds((12, 13), (12, 13)), None),
    ],
)
def test_largest_stable_rate(found, holds):
    claim = paper_fc.claim_c_max({2048: found})
    assert claim.holds is holds
    assert paper_fc.claim_c_max({512: found}).holds is None
    assert paper_fc.claim_c_max({2048: found}, "loss = mse").holds is None


def record(c, seed=0, rose=True, end=0.1, diverged=-1, inactive=0.5, loss0=1.0):
    probe = {"mark": "end", "time": 1.0, "lambda": 0.1, "worst_inactive": inactive}
    return {
        **{"c": c, "eta": c, "seed": seed, "lambda0": 1.0, "loss0": loss0},
        "loss": [loss0, 50.0 if rose else 0.5, end],
        "rose_at": 1 if rose else -1,
        "diverged_at": diverged,
        "probes": [probe],
    }


def test_catapults_rise_and_come_down():
    def claim(*records):
        return paper_fc.claim_catapult(records).holds

    good = [record(8), record(10), record(12)]
    assert claim(*good) is True
    assert claim(*good, record(11, rose=False)) is False
    assert claim(*good, record(11, end=2.0)) is False
    assert claim(*good[:2]) is None
    dead = [record(c, inactive=0.99) for c in (8, 9, 10)]
    lost = [record(c, diverged=2) for c in (8, 9, 10)]
    assert claim(*dead, *lost, record(1.0, rose=False)) is None


def test_brackets_end_at_the_first_dead_or_divergent_rate():
    held = [record(2), record(4, inactive=0.99), record(8), record(2, 1, diverged=1), record(2, 2)]
    assert paper_fc.grid.brackets(held) == [
        Bracket(0, 2, 4, True),
        Bracket(1, 0, 2),
        Bracket(2, 2, None),
    ]
    assert listed(paper_fc.grid.brackets(held)) == "2 to 4 (dead), below 2, above 2"


def test_two_seeds_far_apart_are_no_agreement():
    """Their median, 7.5, lies near neither."""
    assert within(seeds((3, 4), (12, 14)), 7, 16)[0] is False


def test_another_setting_is_named():
    usual = paper_fc.SETTINGS["cpu"]
    assert paper_fc.differs(usual) == ""
    assert paper_fc.differs(dataclasses.replace(usual, loss="mse", train=60)) == (
        "train = 60, loss = mse"
    )
    assert paper_fc.differs(dataclasses.replace(usual, seeds=9, c=(1.0, 2.0))) == ""


def test_no_published_number_is_decided_at_smoke_scale():
    claims = rp.reproduce("paper-fc", "smoke", seeds=1, c=(3.0,)).outcome.claims
    assert [c.holds for c in claims[:4]] == [None] * 4
