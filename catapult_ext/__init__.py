"""Curvature of neural networks (NTK, GGN, Hessian) and the catapult phase of training."""

from catapult_ext import ops
from catapult_ext._native import build_info

__version__: str = build_info()["version"]

__all__ = ["__version__", "build_info", "ops"]
