"""Curvature of neural networks (NTK, GGN, Hessian) and the catapult phase of training."""

from catapult_ext import data, losses, models, ops, toy
from catapult_ext._native import build_info
from catapult_ext.eig import (
    BatchedEigshResult,
    EigshResult,
    Estimate,
    SpectralDensity,
    TopTracker,
    eigsh,
    hutchinson_diagonal,
    hutchinson_trace,
    spectral_density,
    xdiag,
    xtrace,
)
from catapult_ext.eig import diagonal as diagonal  # deprecated
from catapult_ext.eig import trace as trace  # deprecated
from catapult_ext.experiments import SweepResult, sweep
from catapult_ext.linops import (
    GGN,
    NTK,
    EmpiricalFisher,
    Hessian,
    Jacobian,
    Preconditioned,
    StackedGGN,
    StackedHessian,
    StackedNTK,
    StoredKernel,
    StreamedGGN,
    StreamedHessian,
    StreamedNTK,
)
from catapult_ext.losses import convert_lambda
from catapult_ext.probes import (
    ByLayer,
    CurvatureTracker,
    EdgeMeter,
    LearningRateWindow,
    StabilityThreshold,
    StackedCurvatureTracker,
    Track,
    by_layer,
    learning_rate_window,
    stability_threshold,
    track,
)
from catapult_ext.systems import (
    CholeskyFactor,
    FunctionResult,
    LeaveOneOut,
    PivotedCholesky,
    SolveResult,
    cholesky,
    leave_one_out,
    logdet,
    matrix_function,
    pivoted_cholesky,
    solve,
)

__version__: str = build_info()["version"]

__all__ = [
    "GGN",
    "NTK",
    "BatchedEigshResult",
    "ByLayer",
    "CholeskyFactor",
    "CurvatureTracker",
    "EdgeMeter",
    "EigshResult",
    "EmpiricalFisher",
    "Estimate",
    "FunctionResult",
    "Hessian",
    "Jacobian",
    "LearningRateWindow",
    "LeaveOneOut",
    "PivotedCholesky",
    "Preconditioned",
    "SolveResult",
    "SpectralDensity",
    "StabilityThreshold",
    "StackedCurvatureTracker",
    "StackedGGN",
    "StackedHessian",
    "StackedNTK",
    "StoredKernel",
    "StreamedGGN",
    "StreamedHessian",
    "StreamedNTK",
    "SweepResult",
    "TopTracker",
    "Track",
    "__version__",
    "build_info",
    "by_layer",
    "cholesky",
    "convert_lambda",
    "data",
    "eigsh",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "learning_rate_window",
    "leave_one_out",
    "logdet",
    "losses",
    "matrix_function",
    "models",
    "ops",
    "pivoted_cholesky",
    "solve",
    "spectral_density",
    "stability_threshold",
    "sweep",
    "toy",
    "track",
    "xdiag",
    "xtrace",
]


def __dir__() -> list[str]:
    """Public names and packages, for completion."""
    return [name for name in globals() if name == "__version__" or not name.startswith("_")]
