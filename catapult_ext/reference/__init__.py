"""The native ops in plain torch: the oracle of the tests."""

from catapult_ext.reference.gram import gram
from catapult_ext.reference.lanczos_dense import lanczos_dense
from catapult_ext.reference.lanczos_step import lanczos_step
from catapult_ext.reference.ntk_matvec import ntk_matvec
from catapult_ext.reference.toy_gd import toy_gd
from catapult_ext.reference.toy_gd_reduced import toy_gd_reduced
from catapult_ext.reference.toy_lyapunov import toy_lyapunov
from catapult_ext.reference.toy_scalar import toy_scalar
from catapult_ext.reference.tridiag_eigh import tridiag_eigh

__all__ = [
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
