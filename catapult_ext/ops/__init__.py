"""The native operations as torch ops, one module each."""

from catapult_ext.ops.gram import gram
from catapult_ext.ops.lanczos_step import lanczos_step
from catapult_ext.ops.tridiag_eigh import tridiag_eigh

__all__ = ["gram", "lanczos_step", "tridiag_eigh"]
