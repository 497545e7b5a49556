"""Linear systems, log-determinants and functions of symmetric operators; kernel regression."""

from catapult_ext.systems.determinant import logdet
from catapult_ext.systems.factor import CholeskyFactor, cholesky
from catapult_ext.systems.functions import FunctionResult, matrix_function
from catapult_ext.systems.linear import solve
from catapult_ext.systems.pivoted import PivotedCholesky, pivoted_cholesky
from catapult_ext.systems.regression import LeaveOneOut, leave_one_out
from catapult_ext.systems.result import SolveResult

__all__ = [
    "CholeskyFactor",
    "FunctionResult",
    "LeaveOneOut",
    "PivotedCholesky",
    "SolveResult",
    "cholesky",
    "leave_one_out",
    "logdet",
    "matrix_function",
    "pivoted_cholesky",
    "solve",
]


def __dir__() -> list[str]:
    return __all__
