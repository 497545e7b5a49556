"""Curvature operators of a model: NTK, Gauss-Newton matrix, Hessian, Jacobian."""

from catapult_ext.linops.base import Dual, LinearOperator
from catapult_ext.linops.engine import Frozen
from catapult_ext.linops.fisher import EmpiricalFisher
from catapult_ext.linops.frozen import freeze
from catapult_ext.linops.ggn import GGN
from catapult_ext.linops.hessian import Hessian
from catapult_ext.linops.jacobian import Jacobian
from catapult_ext.linops.kernel_file import KernelFileError
from catapult_ext.linops.ntk import NTK
from catapult_ext.linops.over_batches import StreamedGGN, StreamedHessian, StreamedNTK
from catapult_ext.linops.plan import Plan
from catapult_ext.linops.precondition import Preconditioned

__all__ = [
    "GGN",
    "NTK",
    "Dual",
    "EmpiricalFisher",
    "Frozen",
    "Hessian",
    "Jacobian",
    "KernelFileError",
    "LinearOperator",
    "Plan",
    "Preconditioned",
    "StreamedGGN",
    "StreamedHessian",
    "StreamedNTK",
    "freeze",
]
