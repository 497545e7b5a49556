"""Curvature operators of a model: NTK, Gauss-Newton matrix, Hessian."""

from .base import Dual, LinearOperator
from .frozen import Frozen, freeze
from .ggn import GGN
from .hessian import Hessian
from .ntk import NTK

__all__ = ["GGN", "NTK", "Dual", "Frozen", "Hessian", "LinearOperator", "freeze"]
