"""Curvature operators of a model: NTK, Gauss-Newton matrix, Hessian, Jacobian."""

from typing import Any

from catapult_ext._deprecated import warn_renamed
from catapult_ext.linops.base import Dual, LinearOperator
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.choose import freeze, register_engine
from catapult_ext.linops.engines.plan import Plan
from catapult_ext.linops.explicit.kernel_file import KernelFileError
from catapult_ext.linops.explicit.stored_kernel import StoredKernel
from catapult_ext.linops.fisher import EmpiricalFisher
from catapult_ext.linops.ggn import GGN
from catapult_ext.linops.hessian import Hessian
from catapult_ext.linops.jacobian import Jacobian
from catapult_ext.linops.ntk import NTK
from catapult_ext.linops.preconditioned import Preconditioned
from catapult_ext.linops.stacked.base import StackedDual, StackedOperator
from catapult_ext.linops.stacked.operators import StackedGGN, StackedHessian, StackedNTK
from catapult_ext.linops.streamed.operators import StreamedGGN, StreamedHessian, StreamedNTK

__all__ = [
    "GGN",
    "NTK",
    "Dual",
    "EmpiricalFisher",
    "Hessian",
    "Jacobian",
    "KernelFileError",
    "LinearOperator",
    "Linearization",
    "Plan",
    "Preconditioned",
    "StackedDual",
    "StackedGGN",
    "StackedHessian",
    "StackedNTK",
    "StackedOperator",
    "StoredKernel",
    "StreamedGGN",
    "StreamedHessian",
    "StreamedNTK",
    "freeze",
    "register_engine",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name == "Frozen":
        warn_renamed("linops.Frozen", "linops.Linearization")
        return Linearization
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
