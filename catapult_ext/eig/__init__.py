"""Eigensolvers and spectral estimates for operators known by their products."""

from catapult_ext.eig.lanczos import eigsh
from catapult_ext.eig.leave_one_out import xdiag, xtrace
from catapult_ext.eig.pairs import EigshResult
from catapult_ext.eig.random import (
    Estimate,
    SpectralDensity,
    hutchinson_diagonal,
    hutchinson_trace,
    spectral_density,
)
from catapult_ext.eig.random import diagonal as diagonal  # deprecated
from catapult_ext.eig.random import trace as trace  # deprecated
from catapult_ext.eig.replicas.pairs import BatchedEigshResult
from catapult_ext.eig.tracking import TopTracker

__all__ = [
    "BatchedEigshResult",
    "EigshResult",
    "Estimate",
    "SpectralDensity",
    "TopTracker",
    "eigsh",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "spectral_density",
    "xdiag",
    "xtrace",
]


def __dir__() -> list[str]:
    return __all__
