"""The native operations as torch ops, one module each."""

from catapult_ext.ops.gram import gram
from catapult_ext.ops.lanczos_dense import LanczosDense, lanczos_dense
from catapult_ext.ops.lanczos_step import lanczos_step
from catapult_ext.ops.ntk_matvec import ntk_matvec
from catapult_ext.ops.toy_gd import toy_gd
from catapult_ext.ops.toy_gd_reduced import toy_gd_reduced
from catapult_ext.ops.toy_lyapunov import toy_lyapunov
from catapult_ext.ops.toy_model import ToyRecord
from catapult_ext.ops.toy_scalar import toy_scalar
from catapult_ext.ops.tridiag_eigh import tridiag_eigh

__all__ = [
    "LanczosDense",
    "ToyRecord",
    "gram",
    "lanczos_dense",
    "lanczos_step",
    "ntk_matvec",
    "toy_gd",
    "toy_gd_reduced",
    "toy_lyapunov",
    "toy_scalar",
    "tridiag_eigh",
]


def __dir__() -> list[str]:
    return __all__
