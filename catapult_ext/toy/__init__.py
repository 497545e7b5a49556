"""Two-layer networks of the catapult paper: the linear one exact at any width."""

from __future__ import annotations

from catapult_ext.ops.toy_model import ACTIVATIONS
from catapult_ext.toy.bifurcation import Bifurcation, bifurcation
from catapult_ext.toy.lyapunov import LyapunovEstimate, lyapunov_edge, lyapunov_exponent
from catapult_ext.toy.maps import (
    PHASE_NAMES,
    ScalarRuns,
    pm_step,
    run_scalar,
    state_of,
    uv_step,
)
from catapult_ext.toy.mean_square import (
    mean_square_edge,
    second_moment_growth,
    second_moment_matrix,
)
from catapult_ext.toy.noise_plane import NoisePlane, noise_plane
from catapult_ext.toy.observer import OBSERVABLES
from catapult_ext.toy.phase_diagram import PhaseDiagram, phase_diagram
from catapult_ext.toy.quadratic_models import (
    QuadraticModel,
    QuadraticRun,
    neural_quadratic,
    quadratic_net,
    second_order_regression,
)
from catapult_ext.toy.rules import Stop
from catapult_ext.toy.schedules import drop, staircase, warm_up
from catapult_ext.toy.simulate import simulate
from catapult_ext.toy.trajectory import Trajectory
from catapult_ext.toy.weights import ReducedState, draw_reduced, draw_weights

__all__ = [
    "ACTIVATIONS",
    "OBSERVABLES",
    "PHASE_NAMES",
    "Bifurcation",
    "LyapunovEstimate",
    "NoisePlane",
    "PhaseDiagram",
    "QuadraticModel",
    "QuadraticRun",
    "ReducedState",
    "ScalarRuns",
    "Stop",
    "Trajectory",
    "bifurcation",
    "draw_reduced",
    "draw_weights",
    "drop",
    "lyapunov_edge",
    "lyapunov_exponent",
    "mean_square_edge",
    "neural_quadratic",
    "noise_plane",
    "phase_diagram",
    "pm_step",
    "quadratic_net",
    "run_scalar",
    "second_moment_growth",
    "second_moment_matrix",
    "second_order_regression",
    "simulate",
    "staircase",
    "state_of",
    "uv_step",
    "warm_up",
]


def __dir__() -> list[str]:
    return __all__
