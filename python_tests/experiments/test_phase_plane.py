"""phase-plane: cells are the runs made alone; tables, claims and pictures say what they hold."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from catapult_ext import data
from catapult_ext.experiments import reproduce as rp
from catapult_ext.experiments.descent import descend
from catapult_ext.experiments.reproduce import phase_plane as plane
from catapult_ext.experiments.reproduce import phase_plane_claims as claims
from catapult_ext.experiments.reproduce.phase_plane_table import boundaries, cells, picture
from catapult_ext.figures.phase_plane import draw_plane

SMALL = dataclasses.replace(plane.SETTINGS["smoke"], c=(1.0, 4.0, 1e6), steps=8)


@pytest.fixture(scope="module")
def digits():
    return data.digits(train=48, test=60)


@pytest.mark.parametrize("name", plane.PLANES)
def test_cells_are_the_runs_alone(name, digits):
    value = plane.axis(SMALL, name)[0]
    row = plane._row(SMALL, digits, name, value, 1)
    problem, recipe = plane.problem_of(SMALL, digits, name, value, 1)
    assert row["lambda0"] == problem.lambda0
    for cell, c in zip(row["runs"], SMALL.c, strict=True):
        run = descend(problem, problem.eta(c, recipe), recipe, seed=1)
        assert cell["diverged_at"] == run.diverged_at
        if run.diverged_at < 0:
            end = run.rows[-1]
            peak = max(run.losses) / run.losses[0]
            assert cell["eta_lambda_end"] == pytest.approx(cell["eta"] * end["lambda"], rel=2e-2)
            assert cell["test_accuracy"] == pytest.approx(end["test_accuracy"], abs=0.02)
            assert cell["peak"] == pytest.approx(peak, rel=1e-2)
            assert [r["step"] for r in run.rows] == [0, SMALL.steps]
    assert row["runs"][-1]["phase"] == "divergent"


def test_planes_change_what_they_name(digits):
    net = {}
    for name, value in (("width", 24), ("depth", 1), ("batch", 16), ("scale", 2.0)):
        net[name] = plane.problem_of(SMALL, digits, name, value, 0)
    widths = {name: problem.model[0].out_features for name, (problem, _) in net.items()}
    assert widths == {"width": 24, "depth": 16, "batch": 16, "scale": 16}
    assert len(net["depth"][0].model) == 3
    assert {name: recipe.batch for name, (_, recipe) in net.items()} == {
        "width": None,
        "depth": None,
        "batch": 16,
        "scale": None,
    }
    plain, doubled = net["batch"][0], net["scale"][0]
    x = digits.x_train
    torch.testing.assert_close(doubled.model(x), 2 * plain.model(x))
    assert doubled.lambda0 == pytest.approx(4 * plain.lambda0, rel=5e-3)


def record(value, seed, *, rose, lost, c=(1.0, 3.0, 5.0, 9.0)):
    """Rates up to ``rose`` keep below their start, and those from ``lost`` on diverge."""
    runs = [
        {
            "c": x,
            "eta": x,
            "phase": "divergent" if x >= lost else "lazy" if x < 2 else "catapult",
            "flags": [],
            "stable": x < lost,
            "rose_at": 1 if x >= rose else None,
            "peak": 1 + value * x if x >= rose else 1.0,
            "diverged_at": 3 if x >= lost else -1,
            "eta_lambda_end": None if x >= lost else 1.0 + seed,
            "train_loss": None if x >= lost else 0.5,
            "test_accuracy": None if x >= lost else 0.8 + 0.01 * x,
        }
        for x in c
    ]
    return {"plane": "width", "value": value, "seed": seed, "lambda0": 4.0, "runs": runs}


RECORDS = [
    record(32, 0, rose=5.0, lost=9.0),
    record(32, 1, rose=3.0, lost=5.0),
    record(128, 0, rose=3.0, lost=99.0),
    record(128, 1, rose=3.0, lost=9.0),
]


def test_tables_hold_means_with_errors_over_seeds():
    table, lines = cells(RECORDS), boundaries(RECORDS)
    assert [(row["value"], row["c"]) for row in table[:5]] == [
        *((32, c) for c in (1.0, 3.0, 5.0, 9.0)),
        (128, 1.0),
    ]
    assert [row["phase"] for row in table[:4]] == ["lazy", "catapult", "divergent", "divergent"]
    assert [row["diverged"] for row in table] == [0, 0, 1, 2, 0, 0, 0, 1]
    assert table[0]["eta_lambda_end"] == 1.5
    assert table[0]["eta_lambda_end_se"] == pytest.approx(0.5)
    assert table[2]["eta_lambda_end_se"] is None
    assert (lines[0]["c_max"], lines[0]["c_loss"]) == (4.0, 4.0)
    assert lines[0]["c_max_se"] == pytest.approx(1.0)
    assert (lines[1]["c_max"], lines[1]["c_loss"]) == (7.0, 3.0)
    assert [row["c_max_open"] for row in lines] == [0, 1]


def test_claims_follow_the_tables():
    table, lines = cells(RECORDS), boundaries(RECORDS)
    held = {c.name: c.holds for c in claims.of("width", RECORDS, table, lines)}
    assert held["lazy below 2/lambda_0, by width"] is True
    assert held["lambda <= 2/eta at the end, by width"] is True
    assert held["the catapult's peak grows with the width"] is True
    assert held["c_max of wide ReLU nets"] is True
    assert held["best accuracy in the catapult phase"] is True
    worse = [record(128, seed, rose=0.5, lost=5.0) for seed in (2, 3)]
    table, lines = cells(worse), boundaries(worse)
    held = {c.name: c.holds for c in claims.of("width", worse, table, lines)}
    assert held["lazy below 2/lambda_0, by width"] is False
    assert held["lambda <= 2/eta at the end, by width"] is False
    assert held["c_max of wide ReLU nets"] is False
    assert held["the catapult's peak grows with the width"] is None
    assert claims.of("depth", RECORDS, cells(RECORDS), boundaries(RECORDS))[-1].holds is None


@pytest.mark.parametrize(("name", "key"), [("batch", "c_max"), ("scale", "c_loss")])
def test_a_difference_within_the_errors_decides_nothing(name, key):
    def holds(first, last, error):
        lines = [
            {"value": value, "seeds": 3, key: c, f"{key}_se": error}
            for value, c in ((8, first), (64, 5.0), (512, last))
        ]
        return claims.of(name, RECORDS, cells(RECORDS), lines)[-1].holds

    up, down = (True, False) if name == "batch" else (False, True)
    assert holds(4.0, 9.0, 1.0) is up
    assert holds(9.0, 4.0, 1.0) is down
    assert holds(4.0, 9.0, 2.0) is None
    assert holds(4.0, 9.0, None) is None


def test_dead_nets_are_a_phase_of_their_own():
    dead = [record(32, seed, rose=3.0, lost=99.0) for seed in range(3)]
    for one in dead[:2]:
        one["runs"][2]["flags"] = ["dead"]
    assert [row["phase"] for row in cells(dead)] == ["lazy", "catapult", "dead", "catapult"]


def test_the_picture_is_the_same_file_and_draws_the_boundaries():
    pytest.importorskip("matplotlib")
    drawn = picture("a plane", "width", cells(RECORDS), boundaries(RECORDS))
    assert math.isnan(drawn.eta_lambda[0][3])
    assert drawn.phase == [[0, 1, 3, 3], [0, 1, 1, 3]]
    assert [line.c for line in drawn.boundaries] == [[4.0, 7.0], [4.0, 3.0]]
    made = draw_plane(drawn)
    assert set(made) == {"png", "svg", "pdf"}
    assert made["png"].startswith(b"\x89PNG")
    assert made == draw_plane(drawn)
    other = dataclasses.replace(drawn, boundaries=[])
    assert draw_plane(other)["png"] != made["png"]
    one_row = picture("a row", "width", cells(RECORDS[:2]), boundaries(RECORDS[:2]))
    assert draw_plane(one_row)["png"].startswith(b"\x89PNG")


def test_planes_are_named(tmp_path):
    with pytest.raises(ValueError, match="planes of phase-plane must be of width, depth, batch"):
        rp.reproduce("phase-plane", "smoke", planes=("width", "heigth"))
