"""Eigensolvers for operators known by their products."""

from catapult_ext.eig.lanczos import EigshResult, eigsh
from catapult_ext.eig.tracking import TopTracker

__all__ = ["EigshResult", "TopTracker", "eigsh"]
