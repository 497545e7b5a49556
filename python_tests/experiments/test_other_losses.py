"""Sweeps of losses that are not squared: nothing need rise at 2/lambda_0, and no phase says so."""

from __future__ import annotations

import pytest

import catapult_ext as cx
from catapult_ext.figures.sweep import sweep_figures


@pytest.fixture(scope="module")
def runs():
    data = cx.data.digits(train=128, test=64)
    model = cx.models.fully_connected(64, 10, width=64, depth=3)
    return {
        loss: cx.sweep(model, data, c=[1.0, 4.0, 8.0, 400.0], steps=25, loss=loss)
        for loss in ("cross_entropy", "half_mse")
    }


def test_quiet_runs_above_two_are_flat(runs):
    found = runs["cross_entropy"]
    assert found.phases[:3] == ["lazy", "flat", "flat"]
    rises = [row["loss_peak"] for row in found.summary["rates"][:3]]
    assert rises == [1.0, 1.0, 1.0]
    assert [v.phase for v in found.verdicts] == found.phases
    assert "nothing rises at c = 4, 8" in found.closing()
    assert "flat" not in runs["half_mse"].phases
    assert "squared" not in runs["half_mse"].closing()


def test_the_cut_scales_with_the_start(runs):
    start = runs["cross_entropy"].summary["initial"]
    assert start["cut"] == pytest.approx(100 * 64**0.5 * start["loss0"])
    assert runs["cross_entropy"].phases[3] == "divergent"


def test_pictures_of_a_sweep_with_a_flat_region(runs):
    found = runs["cross_entropy"]
    assert all(len(png) > 3000 for png in sweep_figures(found.summary, found.records).values())
