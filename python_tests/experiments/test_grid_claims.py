"""Claims of learning rates x seeds: they fail where it is not so, and need enough to be decided."""

from __future__ import annotations

import pytest

from catapult_ext.experiments import reproduce as rp
from catapult_ext.experiments.reproduce import (
    cnn_fixed_steps,
    fc_phases,
    grid,
    grid_claims,
    grid_panels,
    outcome,
    wrn_phases,
)
from catapult_ext.experiments.reproduce.brackets import Bracket
from catapult_ext.figures.line_panel import draw_panel

DEAD = 0.99


def run(c, seed=0, lam=0.5, rose=None, diverged=-1, inactive=0.5, accuracy=0.9, **more):
    """A record as ``grid.run_grid`` gives them, with lambda_0 = 1."""
    row = {"step": 9, "time": 9 * c, "mark": "end", "lambda": lam, "train_loss": 0.1}
    row |= {"test_accuracy": accuracy, "inactive": inactive, "worst_inactive": inactive}
    rose = c > 2 if rose is None else rose
    return {
        **{"seed": seed, "eta": c, "c": c, "lambda0": 1.0, "diverged_at": diverged, "loss0": 1.0},
        **{"rose_at": 1 if rose else -1, "loss_peak": 9.0 if rose else 1.0, "loss_peak_at": 1},
        **{"loss_steps": [0, 1, 9], "loss": [1.0, 9.0 if rose else 0.5, 0.1]},
        "probes": [row],
    } | more


def both(*cs, **more):
    return [run(c, seed, **more) for seed in range(2) for c in cs]


def test_lazy_asks_that_lambda_stays():
    claim = grid_claims.claim_stays
    assert claim(both(0.5, 1, lam=0.95)).holds is True
    assert claim([*both(0.5, lam=0.95), *both(1.5, lam=0.7)]).holds is False
    assert claim(both(3.0, lam=0.95)).holds is None
    assert claim(both(1.0, lam=0.7, inactive=DEAD)).holds is None


def test_taking_off_needs_a_fine_grid():
    claim = grid_claims.claim_rise
    assert claim(both(1, 1.5, 2.5, 4)).holds is True
    late = [*both(1, 1.5), *both(2.5, 4, 5, rose=False), *both(6)]
    assert claim(late).holds is False
    coarse = [*both(1, 3, rose=False), *both(30)]
    assert claim(coarse).holds is None
    assert "too far apart" in claim(coarse).why
    assert claim([run(c) for c in (1, 1.5, 2.5)]).holds is None  # one seed
    assert claim(both(1, 1.5, rose=False)).holds is None


def test_about_twelve_needs_seeds_that_agree():
    def claim(*pairs):
        found = [Bracket(i, low, high) for i, (low, high) in enumerate(pairs)]
        return grid_claims.claim_c_max(found).holds

    assert claim((8, 10), (10, 12), (12, 14)) is True
    assert claim((4, 6), (4, 6)) is False
    assert claim((3, 4), (12, 14)) is False  # the median, 7.5, is of no seed
    assert claim((6, 20), (6, 20)) is None  # the rates lie too far apart
    assert claim((12, None), (12, None)) is None
    assert claim((8, 10)) is None


def test_dead_nets_carry_no_claim():
    """Their curvature is low and their accuracy of chance, which is no finding."""
    dead = grid.by_rate(both(4.0, inactive=DEAD, lam=0.01))
    assert grid_claims.claim_bound(dead).holds is None
    assert dead[0]["dead"] == 2
    assert dead[0]["eta_lambda_end"] is dead[0]["test_accuracy"] is None
    half = grid.by_rate([run(4.0, 0, lam=0.6), run(4.0, 1, lam=0.01, inactive=DEAD)])
    assert half[0]["eta_lambda_end"] == pytest.approx(2.4)
    assert grid_claims.claim_bound(half).holds is False
    rows = grid.by_rate([*both(1.0, accuracy=0.8), *both(3.0, accuracy=0.95, inactive=DEAD)])
    assert grid_claims.claim_best(rows, 1.0).holds is None


def rising(c, seed=0, **more):
    probes = [{"lambda": v, "mark": "schedule"} for v in (1.0, 3.0)]
    end = run(c, seed, **more)["probes"]
    return run(c, seed, **more) | {"probes": probes + end}


def test_a_rise_of_lambda_counts_live_nets_only():
    claim = wrn_phases._claim_rise
    live = [run(c, lam=0.5) for c in (3.0, 4.0, 6.0)]
    dying = [rising(c, inactive=DEAD) for c in (8.0, 9.0, 10.0, 11.0)]
    assert claim(live + dying).holds is False
    assert claim(dying).holds is None
    assert claim([rising(c) for c in (3.0, 4.0, 6.0)]).holds is True
    assert claim([rising(3.0), rising(4.0)]).holds is None


def test_a_drop_needs_nets_that_learnt():
    def claim(accuracy, lost):
        rows = grid.by_rate(
            [*both(1, 3, accuracy=accuracy), *both(8, accuracy=0.3, diverged=3 if lost else -1)]
        )
        return cnn_fixed_steps._claim_drop(rows, 3.0).holds

    assert claim(0.9, True) is True
    assert claim(0.9, False) is False
    assert claim(0.2, True) is None
    rows = grid.by_rate(both(1, 3))
    assert cnn_fixed_steps._claim_drop(rows, 3.0).holds is None


def test_what_is_said_of_squared_losses_is_not_decided_by_others():
    records = [*both(0.5, 1, lam=0.95), *both(3.0)]
    claims = [grid_claims.claim_lazy(records), grid_claims.claim_stays(records)]
    assert [c.holds for c in grid_claims.for_loss(claims, records)] == [True, True]
    other = [r | {"squared": False} for r in records]
    found = grid_claims.for_loss([*claims, outcome.Claim("a", "any loss", "m", True, "")], other)
    assert [c.holds for c in found] == [None, None, True]
    assert found[0].why == "a statement about squared losses, and this is another one"


def test_points_of_some_seeds_are_hollow():
    rows = grid.by_rate([*both(1.0, 3.0), run(4.0), run(4.0, 1, diverged=2)])
    panel = grid_panels.panel_lambda(rows, "eta_lambda_end", "t")
    assert panel.series[0].hollow == [False, False, True]
    assert panel.series[1].x == panel.series[1].y  # eta lambda = c
    full = grid_panels.panel_lambda(grid.by_rate(both(1.0, 3.0)), "eta_lambda_end", "t")
    drawn, plain = draw_panel(panel)["svg"], draw_panel(full)["svg"]
    assert b"hollow: some seeds diverged or died" in drawn
    assert b"hollow" not in plain
    assert b"digits, width 64" in draw_panel(panel, "digits, width 64")["svg"]


def test_a_divergent_curve_leaves_at_the_top():
    lost = run(9.0, diverged=4, loss_peak=1e9)
    lost |= {"loss_steps": [0, 1, 2, 3, 4], "loss": [1.0, 9.0, 3.0, 1e9, None]}
    panel = grid_panels.panel_losses([run(3.0), lost], "t")
    curve = next(s for s in panel.series if "diverged" in s.label)
    assert curve.x == [0, 1, 2, 3]
    assert curve.y == [1.0, 9.0, 3.0, 9e3]  # no falling end
    dead = grid_panels.panel_losses([run(3.0), run(4.0, inactive=DEAD)], "t")
    assert dead.series[1].label == "c = 4 (ends dead)"


def test_equal_time_reads_longer_runs_at_small_rates_only():

    done = rp.reproduce("fc-phases", "smoke", c=(1.0, 8.0), seeds=2, steps=10, equal_time=20.0)
    rows = {r["c"]: r for r in done.outcome.tables["equal_time"]}
    assert set(rows) == {1.0, 8.0}
    names = [c.name for c in done.outcome.claims]
    assert "best accuracy at equal eta t" in names
    assert "best accuracy after equal steps" in names
    assert fc_phases.SETTINGS["cpu"].equal_time * 2 / 2 <= fc_phases.SETTINGS["cpu"].steps
