"""No stored value breaks a verdict, and no probe ends a sweep: what cannot be measured is None."""

from __future__ import annotations

import json

import pytest

from catapult_ext import data, models
from catapult_ext.experiments import DemoConfig, curvature, descent, run_demo, summary
from catapult_ext.experiments import reproduce as rp
from catapult_ext.experiments.descent import Recipe, start, train
from catapult_ext.experiments.reproduce import wrn_phases
from catapult_ext.probes import classify

CONFIG = DemoConfig(width=24, samples=24, steps=6, c=(0.5, 2.1, 4.0))


@pytest.fixture
def blind(monkeypatch):
    """Every solve after the start and the first few fails, as of a saturated softmax."""
    solve, made = descent.top_curvature, []

    def refuses(*args, **options):
        made.append(1)
        if len(made) > 2:
            raise ValueError("catapult_ext.eigsh: A must be symmetric and repeatable, got noise")
        return solve(*args, **options)

    monkeypatch.setattr(descent, "top_curvature", refuses)
    monkeypatch.setattr(curvature, "top_curvature", refuses)  # of stacked runs
    monkeypatch.setattr(curvature.Followed, "_together", refuses)


def test_an_overflow_in_one_step_has_a_verdict(tmp_path):
    """Its loss is stored as null: from below the cut to infinity in a step."""
    settings = {"seeds": 1, "steps": 5, "c": (1.0, 3.0, 1e12)}
    for name in ("fc-phases", "wrn-phases", "cnn-fixed-steps"):
        out = tmp_path / name
        done = rp.reproduce(name, "smoke", out=out, **settings)
        stored = [
            json.loads(p.read_text())["record"] for p in (out / "parts").glob("*_c1e+12.json")
        ]
        assert stored, name
        for record in stored:
            assert None in record["loss"]
            assert record["diverged_at"] >= 0
        assert done.outcome.claims
        again = rp.reproduce(name, "smoke", out=out, **settings)  # of the stored parts
        assert again.outcome.claims == done.outcome.claims


def test_none_is_no_finite_loss():
    found = classify(1.0, 1.0, [1.0, 2.0, None])
    assert (found.phase, found.evidence.diverged_at) == ("divergent", 2)
    assert found.evidence.loss_peak == 2.0
    grown = classify(1.0, 1.0, [1.0, 0.5], growth=[1.0, None])
    assert grown.evidence.projection_peak == 1.0
    with pytest.raises(TypeError, match="loss must be a sequence of numbers, got 'x' at 1"):
        classify(1.0, 1.0, [1.0, "x"])


def test_a_sweep_goes_on_without_a_curvature(tmp_path, blind):
    with pytest.warns(RuntimeWarning, match="no curvature at step 1, .*repeatable"):
        found = run_demo(CONFIG, out=tmp_path / "run")
    (tmp_path / "run" / "report.html").stat()
    ends = [record["lambda"][-1] for record in found.records]
    assert ends[1:] == [None, None]
    assert found.records[-1]["reasons"]["1"].startswith("ValueError")
    assert [row["phase"] for row in found.summary["rates"]] == ["lazy", "catapult", "catapult"]
    assert found.summary["catapult_bound_holds"] is None
    assert summary.closing(found.summary)
    assert run_demo(CONFIG, out=tmp_path / "run").summary == found.summary


def test_a_run_goes_on_without_a_curvature(blind):
    digits = data.digits(train=24, test=20)
    recipe = Recipe(steps=8)
    problem = start(models.build("fc", (64,), 10, width=12, depth=2), digits, "half_mse", recipe)
    with pytest.warns(RuntimeWarning, match="no curvature"):
        record = train(problem, problem.eta(1.0, recipe), recipe)
    known = [row["lambda"] is not None for row in record["probes"]]
    assert known == [True, True, True, False, False]
    assert all("train_loss" in row for row in record["probes"])
    assert wrn_phases._rose_and_fell(record) in (True, False)
