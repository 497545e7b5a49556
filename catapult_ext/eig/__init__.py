"""Eigensolvers for operators known by their products."""

from catapult_ext.eig.lanczos import EigshResult, eigsh

__all__ = ["EigshResult", "eigsh"]
