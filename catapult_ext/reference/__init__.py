"""The native ops in plain torch: the oracle of the tests."""

from catapult_ext.reference.gram import gram
from catapult_ext.reference.lanczos_step import lanczos_step
from catapult_ext.reference.tridiag_eigh import tridiag_eigh

__all__ = ["gram", "lanczos_step", "tridiag_eigh"]
