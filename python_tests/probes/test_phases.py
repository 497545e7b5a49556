from __future__ import annotations

import math

import pytest

from catapult_ext.probes import PHASES, classify, divergence_cut


def scalar_model(c, steps=400, u0=1e-6):
    """The universal map of the one-sample toy model: u = eta^2 f^2 / n, v = eta lambda."""
    u = u0
    v = c
    loss = [u0]
    curvature = [c]
    for _ in range(steps):
        u, v = (1 - v + u) ** 2 * u, v - u * (4 - v)
        if not math.isfinite(u) or u > 1e6:
            return loss, curvature, len(loss)
        loss.append(u)
        curvature.append(v)
    return loss, curvature, -1


@pytest.mark.parametrize(
    ("c", "phase"),
    [
        (0.5, "lazy"),
        (1.9, "lazy"),
        (2.2, "catapult"),
        (3.0, "catapult"),
        (3.9, "catapult"),
        (4.1, "divergent"),
        (6.0, "divergent"),
    ],
)
def test_phases_of_the_exact_toy_map(c, phase):
    loss, curvature, diverged_at = scalar_model(c)
    verdict = classify(c, 1.0, loss, lambda_end=curvature[-1] / c, diverged_at=diverged_at)
    assert verdict.phase == phase
    assert verdict.phase in PHASES
    assert verdict.flags == ()
    e = verdict.evidence
    assert e.c == c
    assert (e.loss_rose_at is None) == (c < 2)
    assert (e.diverged_at is None) == (phase != "divergent")
    if phase == "catapult":
        assert e.loss_rose_at == 1
        assert e.eta_lambda_end < 2
        assert e.loss_peak == pytest.approx(max(loss) / loss[0])
        assert e.loss_end < 1


def test_threshold_itself_is_catapult_and_just_below_is_lazy():
    assert classify(2.0, 1.0, [1.0, 1.0]).phase == "catapult"
    assert classify(math.nextafter(2, 0), 1.0, [1.0, 0.5]).phase == "lazy"


def test_growth_that_is_rounding_is_not_growth():
    e = classify(1.0, 1.0, [1.0, 1.0 + 1e-9], growth=[1.0, 1.0 + 1e-9]).evidence
    assert (e.loss_rose_at, e.projection_grew_at) == (None, None)
    e = classify(1.0, 1.0, [1.0, 1.001], growth=[1.0, 0.9, 1.2]).evidence
    assert (e.loss_rose_at, e.projection_grew_at, e.projection_peak) == (1, 2, 1.2)


def test_flags():
    assert classify(3.0, 1.0, [1.0, 0.5], lambda_end=0.7).flags == ("unsettled",)
    assert classify(3.0, 1.0, [1.0, 0.5], inactive=0.97).flags == ("dead",)
    assert not classify(3.0, 1.0, [1.0, 0.5], inactive=0.97).stable
    assert classify(3.0, 1.0, [1.0, 1.0], inactive=0.9).flags == ("stalled",)
    # A diverged run is dead and unsettled as a matter of course: no flags.
    assert classify(3.0, 1.0, [1.0, 9.0], inactive=1.0, diverged_at=2).flags == ()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_non_finite_loss_is_divergent_at_that_step(bad):
    verdict = classify(1.0, 1.0, [1.0, 2.0, bad])
    assert verdict.phase == "divergent"
    assert verdict.evidence.diverged_at == 2
    assert verdict.evidence.loss_rose_at == 1
    assert classify(1.0, 1.0, [bad]).phase == "divergent"


def test_cut_grows_with_the_width_and_stays_above_the_peak_of_the_toy():
    assert divergence_cut(1.0, 1024) == 2 * divergence_cut(1.0, 512)
    # Peak of the toy: n lambda0^2 / 8, whatever the initial loss.
    assert divergence_cut(1e-12, 512, 4.0) > 512 * 4.0**2 / 8


def test_explanation_names_the_reasons():
    text = classify(3.0, 1.0, [1.0, 5.0, 0.1], lambda_end=0.2, growth=[1.0, 2.0, 0.1]).explain()
    assert text == (
        "catapult: eta*lambda_0 = 3, the loss rose at step 1, up to 5 times, the projection grew "
        "at step 1, up to 2 times, eta*lambda ends at 0.6"
    )
    assert (
        "divergent: eta*lambda_0 = 9, given up at step 3"
        in classify(9.0, 1.0, [1.0, 5.0], diverged_at=3).explain()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, [1.0]), "eta must be finite and > 0, got 0.0"),
        ((math.nan, 1.0, [1.0]), "eta must be finite and > 0, got nan"),
        ((1.0, -1.0, [1.0]), "lambda0 must be finite and >= 0"),
        ((1.0, 1.0, []), "loss must hold at least the initial value"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        classify(*arguments)


def test_other_losses_catapult_only_where_they_rise():
    def phase(loss, **more):
        return classify(8.0, 1.0, loss, squared=False, **more).phase

    assert phase([2.3, 1.0, 0.5]) == "flat"
    assert phase([2.3, 9.0, 0.5]) == "catapult"
    assert phase([2.3, 9.0], diverged_at=1) == "divergent"
    assert classify(1.0, 1.0, [2.3, 1.0], squared=False).phase == "lazy"
    assert classify(8.0, 1.0, [2.3, 1.0]).phase == "catapult"  # squared


def test_the_cut_of_other_losses_scales_with_the_start_alone():
    assert divergence_cut(2.3, 256, 340.0, squared=False) == pytest.approx(100 * 16 * 2.3)
    assert divergence_cut(2.3, 256, 340.0) > 1e5
