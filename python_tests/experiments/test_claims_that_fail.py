"""Claims on made-up tables: each fails somewhere, and each is left open somewhere."""

from __future__ import annotations

import pytest

from catapult_ext.experiments.reproduce import (
    grid_claims,
    kalra_phase_diagram,
    phase_plane_claims,
    progressive_sharpening,
)


def run(c, rose=-1, diverged=-1):
    """One run of a grid of rates."""
    peak = 5.0 if rose >= 0 else 1.0
    return {"c": c, "rose_at": rose, "diverged_at": diverged, "loss_peak": peak, "loss0": 1.0}


@pytest.mark.parametrize(
    ("runs", "holds"),
    [
        ([run(0.5), run(1.5), run(4.0, rose=1)], True),
        ([run(0.5), run(1.5, rose=3)], False),
        ([run(0.5, diverged=7)], False),
        ([run(4.0, rose=1)], None),
    ],
)
def test_lazy_below_two(runs, holds):
    assert grid_claims.claim_lazy(runs).holds is holds


def test_a_rise_within_the_slack_is_none():
    record = run(1.5, rose=3) | {"loss_peak": 1.04}
    assert grid_claims.claim_lazy([record], slack=0.05).holds is True
    assert grid_claims.claim_lazy([record]).holds is False


@pytest.mark.parametrize(
    ("below", "above", "error", "holds"),
    [
        (0.8, 0.9, 0.01, True),
        (0.9, 0.8, 0.01, False),
        (0.80, 0.81, 0.01, None),  # within the noise of the seeds
        (0.8, 0.9, None, None),  # one seed
        (0.8, None, 0.01, None),  # one side of 2 only
        (None, None, None, None),  # no class labels
    ],
)
def test_the_best_accuracy_needs_a_gap(below, above, error, holds):
    live = {"diverged": 0, "dead": 0, "test_accuracy_se": error}
    rows = [
        live | {"c": 1.0, "test_accuracy": below},
        live | {"c": 4.0, "test_accuracy": above},
    ]
    assert grid_claims.claim_best(rows, 8.0).holds is holds
    lost = [row | {"dead": row["c"] > 2} for row in rows]
    assert grid_claims.claim_best(lost, 8.0).holds is None


def widths(*values):
    """Rows of the thresholds, as kalra-phase-diagram has them."""
    published = {"published_c_loss": 2.5, "published_c_max": 12.0}
    wide = zip((512, 1024, 2048), values, strict=False)
    return [published | {"width": w, "c_loss": v, "c_max": v} for w, v in wide]


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ((3.0, 2.5, 2.1), True),
        ((3.0, 3.5, 2.1), False),
        ((3.0, 2.5, 1.5), False),  # through 2
        ((3.0, None), None),
        ((3.0,), None),
    ],
)
def test_thresholds_fall_from_width_to_width(values, holds):
    assert kalra_phase_diagram._claim_falls(widths(*values), "c_loss").holds is holds


@pytest.mark.parametrize(
    ("values", "holds"),
    [((12.0, 11.0), True), ((12.0, 40.0), False), ((None, None), None)],
)
def test_the_largest_rate_of_deep_nets(values, holds):
    assert kalra_phase_diagram._claim_max(widths(*values), 8).holds is holds


def cell(value, c, **more):
    """One cell of a plane."""
    usual = {"eta_lambda_end": 1.5, "eta_lambda_end_se": 0.1, "peak": 2.0, "test_accuracy": 0.5}
    return {"value": value, "c": c, "diverged": 0, **usual} | more


@pytest.mark.parametrize(
    ("runs", "holds"),
    [([(1.0, None), (4.0, 2)], True), ([(1.0, 2)], False), ([(4.0, 2)], None)],
)
def test_planes_are_lazy_below_two(runs, holds):
    made = [{"c": c, "rose_at": at, "peak": 3.0} for c, at in runs]
    assert phase_plane_claims._lazy("width", [{"runs": made}]).holds is holds


@pytest.mark.parametrize(
    ("cells", "holds"),
    [
        ([cell(64, 4.0)], True),
        ([cell(64, 4.0), cell(64, 6.0, eta_lambda_end=2.5)], False),
        ([cell(64, 4.0, eta_lambda_end=None)], None),
        ([cell(64, 1.0)], None),
    ],
)
def test_planes_end_below_two(cells, holds):
    assert phase_plane_claims._bound("width", cells).holds is holds


@pytest.mark.parametrize(
    ("lines", "holds"),
    [
        ([(32, 30.0), (64, 12.0), (256, 10.0)], True),
        ([(64, 12.0), (256, 30.0)], False),
        ([(32, 12.0)], None),
        ([(64, None)], None),
    ],
)
def test_the_largest_rate_of_wide_nets(lines, holds):
    rows = [{"value": w, "c_max": c, "c_max_se": 0.5} for w, c in lines]
    assert phase_plane_claims._c_max(rows).holds is holds


@pytest.mark.parametrize(
    ("peaks", "holds"),
    [((2.0, 3.0, 9.0), True), ((9.0, 3.0, 2.0), False), ((2.0,), None), ((None, None), None)],
)
def test_peaks_grow_with_the_width(peaks, holds):
    cells = [cell(width, 4.0, peak=p) for width, p in zip((16, 64, 256), peaks, strict=False)]
    assert phase_plane_claims._peak_grows(cells).holds is holds


@pytest.mark.parametrize(
    ("above", "holds"), [((0.9, 0.9), True), ((0.9, 0.2), False), ((None, None), None)]
)
def test_the_best_accuracy_of_every_width(above, holds):
    held = zip((16, 64), above, strict=True)
    cells = [
        cell(width, c, test_accuracy=value if c > 2 or value is None else 0.5)
        for width, value in held
        for c in (1.0, 4.0)
    ]
    assert phase_plane_claims._best(cells).holds is holds


@pytest.mark.parametrize(
    ("lines", "holds"),
    [
        ([(1, 4.5), (3, 11.0)], True),
        ([(1, 9.0), (3, 11.0)], False),
        ([(1, 4.5)], None),
        ([(1, None), (3, None)], None),
    ],
)
def test_deeper_nets_stand_larger_rates(lines, holds):
    rows = [{"value": depth, "c_max": c, "c_max_se": 0.5} for depth, c in lines]
    assert phase_plane_claims._deeper(rows).holds is holds


@pytest.mark.parametrize(("crossed", "holds"), [((40, 60), True), ((40, None), False), ((), None)])
def test_sharpness_rises_to_the_edge(crossed, holds):
    rows = [{"crossed_at": at, "ratio": 4.0} for at in crossed]
    assert progressive_sharpening._claim_sharpens(rows).holds is holds


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        ({"rises": 0.3, "loss_end": 0.1, "steps_there": 400}, True),
        ({"rises": 0.3, "loss_end": 0.9, "steps_there": 400}, False),  # it does not come down
        ({"rises": 0.0, "loss_end": 0.1, "steps_there": 400}, False),  # it never rises
        ({"rises": 0.3, "loss_end": 0.1, "steps_there": 0}, None),
        ({"rises": None, "loss_end": None, "steps_there": 0}, None),
    ],
)
def test_the_loss_at_the_edge(row, holds):
    assert progressive_sharpening._claim_loss([{"loss_then": 0.5} | row]).holds is holds
