"""Summaries of sweeps and their pictures."""

from __future__ import annotations

import pytest

from catapult_ext.experiments.summary import closing, summarise
from catapult_ext.figures import style, sweep, sweep_panels, sweep_seeds


def record(c, *, diverged_at=-1, growth=(1.0, 0.5), loss=(1.0, 0.5), lam=(1.0, 0.3), acc=0.8):
    return {
        "c": c,
        "eta": c,
        "diverged_at": diverged_at,
        "loss": list(loss),
        "projection": list(growth),
        "growth": list(growth),
        "probe_steps": [0, 1],
        "lambda": list(lam),
        "lambda_error": [0.0, 0.0],
        "weight_norm": [1.0, 1.0],
        "train_accuracy": [0.1, acc],
        "test_accuracy": [0.1, acc],
        "test_loss": [1.0, 0.6],
        "inactive": [0.5, 0.5],
        "worst_inactive": [0.5, 0.5],
        "dead_units": [0.0, 0.0],
    }


LAZY = record(0.5, lam=(1.0, 0.9), acc=0.7)
QUIET = record(2.1)
GROWN = record(2.5, growth=(1.0, 1.2), acc=0.9)
RISEN = record(4.0, growth=(1.0, 2.0), loss=(1.0, 3.0, 0.4), lam=(1.0, 0.1))
OUT = record(9.0, diverged_at=2, growth=(1.0, 8.0), loss=(1.0, 80.0))
INITIAL = {"lambda0": 1.0, "lambda0_error": 1e-4}


def test_thresholds_come_with_the_grid_spacing():
    s = summarise(INITIAL, [LAZY, QUIET, GROWN, RISEN, OUT], None, 10)
    assert (s["eta_crit"], s["divergent"]) == (2.0, [9.0])
    assert s["c_proj"] == {"c": 2.5, "below": 2.1, "uncertainty": pytest.approx(0.4)}
    assert s["c_loss"] == {"c": 4.0, "below": 2.5, "uncertainty": 1.5}
    assert s["largest_stable"] == {"c": 4.0, "above": 9.0, "uncertainty": 5.0}
    assert s["flattest"]["c"] == 4.0
    assert s["best"] == {"c": 2.5, "phase": "catapult", "by": "test_accuracy", "value": 0.9}
    assert s["catapult_bound_holds"] is True
    text = closing(s)
    assert "lambda_0 = 1, so eta_crit = 2/lambda_0 = 2." in text
    assert "c_proj = 2.5 (between 2.1 and 2.5)" in text
    assert "c_loss = 4 (between 2.5 and 4)" in text
    assert "largest stable c is 4 (the limit lies between 4 and 9); divergent: c = 9." in text


def test_a_broken_bound_is_said():
    unsettled = record(4.0, lam=(1.0, 0.8))
    s = summarise(INITIAL, [LAZY, unsettled], None, 10)
    assert s["rates"][1]["flags"] == "unsettled"
    assert s["catapult_bound_holds"] is False
    assert "does NOT stay below 2" in closing(s)


def test_dead_nets_are_neither_stable_nor_flattest_nor_best():
    dead = {**record(9.0, lam=(1.0, 0.0), acc=1.0), "worst_inactive": [0.5, 1.0]}
    s = summarise(INITIAL, [LAZY, RISEN, dead], None, 10)
    assert s["largest_stable"]["c"] == 4.0
    assert s["flattest"]["c"] == 4.0
    assert s["best"]["c"] != 9.0


@pytest.mark.parametrize(
    "records",
    [[LAZY], [OUT], [LAZY, GROWN], [LAZY, QUIET, GROWN, RISEN, OUT]],
    ids=["one lazy", "one divergent", "no divergent", "all"],
)
def test_pictures_of_any_mixture(records):
    summary = summarise(INITIAL, records, None, 10)
    figures = sweep.sweep_figures(summary, records)
    assert set(figures) == set(sweep.CAPTIONS)
    for name, png in figures.items():
        assert png.startswith(b"\x89PNG"), name
        assert 5_000 < len(png) < 400_000, name


def test_pictures_without_test_set_classes_or_activity():
    bare = {k: [None, None] for k in ("train_accuracy", "test_accuracy", "test_loss", "inactive")}
    bare |= {"worst_inactive": [None, None], "dead_units": [None, None]}
    records = [{**r, **bare} for r in (LAZY, GROWN)]
    summary = summarise(INITIAL, records, None, 10)
    assert summary["best"]["by"] == "loss_end"
    assert "training loss" in closing(summary)
    assert sweep.sweep_figures(summary, records)


def test_equal_runs_give_equal_pictures():
    summary = summarise(INITIAL, [LAZY, RISEN], None, 10)
    first = style.png(sweep.overview(summary, [LAZY, RISEN]), 60)
    assert style.png(sweep.overview(summary, [LAZY, RISEN]), 60) == first


def test_the_cross_of_a_divergent_run_stands_in_the_picture():
    calm = record(1.0, loss=(1.0, 0.5))
    lost = record(9.0, loss=(1.0, 10.0, 1e3, 1e6), diverged_at=3)
    rows = [
        {"c": c, "phase": phase, "flags": ""} for c, phase in ((1.0, "lazy"), (9.0, "divergent"))
    ]
    figure = style.new_figure(4, 3)
    ax = figure.add_subplot()
    sweep_panels.draw_loss(ax, {"rates": rows}, [calm, lost])
    (cross,) = [line for line in ax.lines if line.get_marker() == "x"]
    x, y = cross.get_xdata()[0], cross.get_ydata()[0]
    assert x == 3  # the first step beyond the top
    assert y == ax.get_ylim()[1] == 30.0


def test_the_picture_of_seeds_has_medians_ranges_and_phases():
    pytest.importorskip("matplotlib")
    other = record(4.0, growth=(1.0, 4.0), loss=(1.0, 9.0, 0.4), lam=(1.0, 0.0))
    kinds = [[LAZY, RISEN, OUT], [LAZY, other, record(9.0, acc=0.5)]]
    found = [summarise(INITIAL, records, None, 10) for records in kinds]
    figure = sweep_seeds.seeds_overview(found)
    phases, curvature, peaks, performance = figure.axes
    assert [bar.get_height() for bar in phases.patches] == [2, 0, 0, 0, 2, 1, 0, 0, 1]
    # a network without curvature has no place on a logarithmic axis
    assert list(curvature.containers[0].lines[0].get_ydata()) == pytest.approx([0.45, 0.4, 2.7])
    assert list(peaks.containers[1].lines[0].get_ydata()) == pytest.approx([1, 6, 1])
    low, high = peaks.containers[1].lines[2][0].get_segments()[1][:, 1]
    assert (low, high) == pytest.approx((3, 9))
    assert "After 10 steps" in performance.get_title(loc="left")
    assert style.png(figure, 40).startswith(b"\x89PNG")
