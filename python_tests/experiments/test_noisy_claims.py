"""Claims of batch-sharpness, momentum-plateaus and adam-spikes: held, failed, undecided."""

from __future__ import annotations

import math

import pytest

from catapult_ext.experiments import reproduce as rp
from catapult_ext.experiments.reproduce import adam_spikes, batch_sharpness, momentum_plateaus


def batch_row(batch=4, sharpness=0.5, mean=1.0):
    return {"batch": batch, "batch_sharpness": mean, "weighted": mean, "sharpness": sharpness}


@pytest.mark.parametrize(("found", "holds"), [(1.1, True), (0.6, False), (None, None)])
def test_batch_sharpness_hovers(found, holds):
    claim = batch_sharpness.claim_hovers(batch_row(mean=found), 64)
    assert claim.holds is holds
    assert claim.name == "batch sharpness at 2/eta, batches of 4"
    assert "full batch" in batch_sharpness.claim_hovers(batch_row(64), 64).name


@pytest.mark.parametrize(("top", "holds"), [(0.5, True), (1.2, False), (None, None)])
def test_top_eigenvalue_below(top, holds):
    assert batch_sharpness.claim_below([batch_row(sharpness=top)]).holds is holds


def test_smaller_batches_are_flatter():
    claim = batch_sharpness.claim_flatter
    assert claim([batch_row(4, 0.5), batch_row(16, 0.7)]).holds is True
    assert claim([batch_row(4, 0.7), batch_row(16, 0.5)]).holds is False
    assert claim([batch_row(4, 0.7), batch_row(16, None)]).holds is None


def test_response_to_half_the_rate():
    def claim(before, after):
        found = {"batch_sharpness_before": before, "batch_sharpness_after": after}
        return batch_sharpness.claim_response(found).holds

    assert claim(1.0, 1.5) is True
    assert claim(1.0, 1.1) is False
    assert claim(None, 1.0) is None


def test_means_over_the_end_and_around_a_change():
    columns = {
        "batch_sharpness": [9.0, 1.0, 1.0, 1.0, 3.0, 3.0, 4.0, 4.0], "weighted": [1.0] * 8,
        "sharpness": [0.0] * 4 + [1.0] * 4, "loss": [1.0] * 8, "diverged": False,
    }  # fmt: skip
    row = batch_sharpness.row(0.5, 4, columns)
    assert (row["batch_sharpness"], row["sharpness"]) == (3.5 / 4, 0.25)
    found = batch_sharpness.response(10, 40, columns)
    assert (found["batch_sharpness_before"], found["batch_sharpness_after"]) == (1.0, 4.0)
    lost = columns | {"diverged": True}
    assert batch_sharpness.row(0.5, 4, lost)["batch_sharpness"] is None
    assert batch_sharpness.response(10, 40, lost)["sharpness_after"] is None


@pytest.mark.parametrize(("found", "holds"), [(0.95, True), (0.6, False), (None, None)])
def test_plateaus(found, holds):
    row = {"sharpness": found, "batch_sharpness": 1.0}
    assert momentum_plateaus.claim_plateau("n", "e", row, "sharpness", 0.1).holds is holds


@pytest.mark.parametrize(("one", "holds"), [(0.6, True), (0.9, False), (None, None)])
def test_the_same_plateau(one, holds):
    claim = momentum_plateaus.claim_equal(batch_row(mean=one), batch_row(mean=0.62))
    assert claim.holds is holds


def test_leaving_the_first_plateau():
    claim = momentum_plateaus.claim_leaves
    assert claim([batch_row(4, 0.5), batch_row(16, 0.7)]).holds is True
    assert claim([batch_row(4, 0.5), batch_row(16, 0.4)]).holds is False
    assert claim([batch_row(4, 0.5)]).holds is None


def test_rates_put_every_run_at_the_same_distance_from_its_plateau():
    s = momentum_plateaus.Settings(rate=0.4, full_rate=0.2, beta=0.9)
    rates = {p.name: momentum_plateaus._rate(s, p) for p in momentum_plateaus.plan(s)}
    assert rates["gd_full"] == 0.2
    assert rates["gd_batch_4"] == 0.4
    assert rates["heavy-ball_batch_4"] == pytest.approx(0.04)
    assert rates["heavy-ball_full"] == pytest.approx(0.38)
    assert rates["nesterov_full"] == pytest.approx(0.38 / 2.8)


def spike(before=1.2, after=0.9):
    return {"chi_before": before, "chi_after": after}


def test_claims_of_adam():
    before, after = adam_spikes.claim_before, adam_spikes.claim_after
    assert before([spike(), spike(1.01)]).holds is True
    assert before([spike(), spike(0.9)]).holds is False
    assert before([spike(None)]).holds is None
    assert after([spike()]).holds is True
    assert after([spike(after=1.1)]).holds is False
    assert after([spike(after=None)]).holds is None
    decay = adam_spikes.claim_decay
    line = {"beta2": 0.99, "predicted": 100.0, "crossed_at": 105, "before": 1e-9, "peak": 1e-3}
    assert decay([line]).holds is True
    assert decay([line, line | {"crossed_at": 150}]).holds is False
    assert decay([line, line | {"crossed_at": None}]).holds is False
    assert decay([]).holds is None
    spikes = adam_spikes.claim_line_spikes
    assert spikes([line]).holds is True
    assert spikes([line | {"peak": 1e-8}]).holds is False
    assert spikes([line | {"peak": None}]).holds is None


def test_excess_before_spikes_is_compared_with_all_stretches():
    quiet = adam_spikes.QUIET
    times = [0, quiet, 2 * quiet, 3 * quiet + 1]
    records = [{"at": times, "chi": [0.5, 1.5, 0.5, 0.5]}]
    assert adam_spikes._highest(records[0]) == [0.5, 1.5, 1.5, 0.5]
    assert adam_spikes.claim_chance(records, [spike()]).holds is True
    assert adam_spikes.claim_chance(records, [spike(0.9)]).holds is False
    above = [{"at": [0], "chi": [1.5]}]
    assert adam_spikes.claim_chance(above, [spike()]).holds is False
    assert adam_spikes.claim_chance(records, []).holds is None


def test_a_spike_lasts_until_the_loss_stays_low():
    quiet = adam_spikes.QUIET
    loss = [4.0, 2.0, 1.0, 3.0, 1.5, 5.0, None, *[1.5] * (quiet + 5), 0.9, 2.0]
    record = {"loss": loss, "at": [0, 2, 4, 8, 100], "chi": [5.0, 1.1, 0.9, 0.4, 0.1]}
    first, second = adam_spikes.spikes(record, seed=3)
    assert (first["onset"], first["end"], first["seed"]) == (3, 6 + quiet, 3)
    assert (first["chi_before"], first["chi_after"]) == (5.0, 0.4)
    assert first["rise"] == 1e300
    assert (second["onset"], second["end"]) == (len(loss) - 1, len(loss) - 1)
    assert second["chi_before"] is None
    assert second["rise"] == pytest.approx(2.0 / 0.9)
    assert adam_spikes.spikes({"loss": [2.0, 1.0, 1.9], "at": [], "chi": []}, 0) == []


def test_adam_on_a_line_crosses_where_the_source_says():
    line = adam_spikes.on_a_line(0.01, 0.99)
    assert line["crossed_at"] == 1578  # the step of index 1578 is the 1579th
    assert math.sqrt(2 * line["peak"]) == pytest.approx(0.0033, rel=0.02)
    assert line["predicted"] == pytest.approx(1640, abs=1)


def test_batches_larger_than_the_data_are_refused():
    with pytest.raises(ValueError, match="batches of batch-sharpness must be <= train, got 64"):
        rp.reproduce("batch-sharpness", "smoke", batches=(4, 64))
    with pytest.raises(ValueError, match="batches of momentum-plateaus must be < train, got 32"):
        rp.reproduce("momentum-plateaus", "smoke", batches=(4, 32))
