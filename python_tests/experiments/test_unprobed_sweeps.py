"""Sweeps that measure less: without probes, without eigenspace, at the start and end alone."""

from __future__ import annotations

import importlib
import math

import pytest

import catapult_ext as cx
from catapult_ext import data, models

CLASSES = data.teacher(16, 6, in_features=4, out_features=3, classes=True, seed=1)
RATES = (0.5, 3.0, 1e5)


def net(**settings):
    return models.fully_connected(4, 3, width=8, depth=1, **settings)


@pytest.mark.parametrize("loss", ["half_mse", "cross_entropy"])
def test_without_probes_the_losses_and_phases_are_the_same(tmp_path, loss):
    out = tmp_path / "run" if loss == "half_mse" else None
    whole = cx.sweep(net(), CLASSES, c=RATES, steps=5, loss=loss)
    bare = cx.sweep(net(), CLASSES, c=RATES, steps=5, loss=loss, probes=False, out=out)
    assert bare.phases == whole.phases
    assert bare.lambda0 == pytest.approx(whole.lambda0, rel=2e-4)
    for one, two in zip(bare.records, whole.records, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-2)  # rates follow lambda_0
        assert one["probe_steps"] == one["lambda"] == one["growth"] == []
    assert bare.rows[0]["lambda_end"] is None
    assert "projection" not in bare.closing()
    assert "No curvature was measured along the runs" in bare.closing()
    assert "No curvature" not in whole.closing()
    if out is not None:
        drawn = {path.name for path in out.glob("fig_*.png")}
        assert "fig_loss.png" in drawn
        assert not drawn & {"fig_curvature.png", "fig_flatness.png"}


def test_start_and_end_alone(tmp_path, monkeypatch):
    sweep = importlib.import_module("catapult_ext.experiments.sweep")
    monkeypatch.setattr(sweep, "sweep_figures", lambda *_: {})
    how = {"c": RATES, "steps": 5, "probe_factor": math.inf, "top": 1, "out": tmp_path / "run"}
    done = cx.sweep(net(), CLASSES, **how)
    assert [record["probe_steps"] for record in done.records[:2]] == [[0, 5], [0, 5]]
    assert cx.sweep(net(), CLASSES, **how).summary == done.summary  # resumes


def test_no_eigenspace_is_solved_for_where_none_is_asked(monkeypatch):
    """top=0 solves for one eigenvalue at the start, not for the kernel's eigenspace."""
    from catapult_ext.experiments import curvature

    asked = []
    monkeypatch.setattr(curvature, "top_space", lambda *a, **k: asked.append(a))
    done = cx.sweep(net(), CLASSES, c=(0.5,), steps=3, loss="cross_entropy", top=0)
    assert asked == []
    assert done.rows[0]["projection_peak"] is None
    assert done.rows[0]["lambda_end"] is not None


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="linearised=True needs the top eigenspace"):
        cx.sweep(net(), CLASSES, c=(0.5,), linearised=True, probes=False)
    with pytest.raises(ValueError, match="top must be >= 0"):
        cx.sweep(net(), CLASSES, c=(0.5,), top=-1)
