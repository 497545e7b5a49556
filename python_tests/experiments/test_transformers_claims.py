"""Claims about small transformers: true, false, too little tested."""

from __future__ import annotations

import dataclasses

from catapult_ext.experiments.reproduce import outcome, registry, transformers
from catapult_ext.experiments.reproduce import transformers_claims as judged


def run(c, seed=0, rose=False, works=True, diverged=-1, inactive=0.5):
    end = {"mark": "end", "train_loss": 0.5 if works else 2.0, "worst_inactive": inactive}
    return {
        **{"c": c, "seed": seed, "eta": c, "loss0": 1.0, "diverged_at": diverged},
        **{"rose_at": 1 if rose else -1, "probes": [end]},
    }


def both(*cs, **more):
    return [run(c, seed, **more) for seed in range(2) for c in cs]


def test_what_works():
    assert judged.works(run(1.0))
    assert not judged.works(run(1.0, works=False))
    assert not judged.works(run(1.0, diverged=4))
    assert not judged.works(run(1.0, inactive=0.99))


def test_no_rise_below_two():
    assert judged.claim_lazy("n", both(1.0)).holds is True
    assert judged.claim_lazy("n", [*both(1.0), run(1.5, rose=True)]).holds is False
    assert judged.claim_lazy("n", both(3.0)).holds is None


def test_a_catapult_rises_and_ends_lower():
    assert judged.claim_catapult("n", both(4.0, rose=True)).holds is True
    assert judged.claim_catapult("n", both(4.0)).holds is False
    assert judged.claim_catapult("n", both(4.0, rose=True, works=False)).holds is False
    assert judged.claim_catapult("n", [run(4.0, rose=True)]).holds is None
    assert judged.claim_catapult("n", both(1.0)).holds is None


def test_working_beyond_the_edge():
    def claim(*runs):
        return judged.claim_beyond("n", "gd", [r for part in runs for r in part], 2.0).holds

    assert claim(both(1.0, 2.5), both(4.0, works=False)) is True
    assert claim(both(1.0), both(1.5, works=False)) is False
    assert claim(both(1.0), both(4.0, works=False)) is None
    assert claim([run(1.0), run(2.5)]) is None


def test_decay_moves_no_boundary():
    def held(*good):
        return [run(c, seed, works=c in good) for seed in range(2) for c in (0.01, 0.03, 0.1, 0.3)]

    claim = judged.claim_decay
    assert claim("n", held(0.01, 0.03), held(0.01, 0.03, 0.1)).holds is True
    assert claim("n", held(0.01), held(0.01, 0.03, 0.1)).holds is False
    whole = held(0.01, 0.03, 0.1, 0.3)
    assert claim("n", whole, whole).holds is None


def test_the_realized_edge():
    row = {"optimizer": "gd", "chi": 1.2, "zeta": 0.98, "readings": 9, "diverged": False}
    assert judged.claim_edge("n", [row]).holds is True
    assert judged.claim_edge("n", [row, row | {"zeta": 0.6}]).holds is False
    assert judged.claim_edge("n", [row | {"readings": 2}]).holds is None


def test_claims_name_the_data_of_either_net():
    both = transformers.Settings()
    said = "gpt on sums and vit on digits, 256 samples, width 32, 2 blocks, cross_entropy, 2 seeds"
    assert outcome.described(registry.experiment("transformers"), both) == said
    alone = dataclasses.replace(both, nets=("gpt",), seeds=3)
    assert outcome.described(registry.experiment("transformers"), alone).startswith(
        "gpt on sums, 256"
    )


def test_points_of_some_seeds_are_hollow():
    usual = {"net": "gpt", "optimizer": "gd", "runs": 2, "loss_end": 0.1, "loss_end_se": None}
    rows = [usual | {"rate": 4.0, "work": 2}, usual | {"rate": 8.0, "work": 1}]
    rows.append(usual | {"rate": 12.0, "work": 0, "loss_end": None})
    (series,) = transformers._panel("gpt", rows).series
    assert (series.x, series.hollow) == ([0.5, 1.0], [False, True])
