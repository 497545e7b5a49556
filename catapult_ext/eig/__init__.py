"""Eigensolvers and spectral estimates for operators known by their products."""

from catapult_ext.eig.lanczos import EigshResult, eigsh
from catapult_ext.eig.random import Estimate, SpectralDensity, diagonal, spectral_density, trace
from catapult_ext.eig.tracking import TopTracker

__all__ = [
    "EigshResult",
    "Estimate",
    "SpectralDensity",
    "TopTracker",
    "diagonal",
    "eigsh",
    "spectral_density",
    "trace",
]
