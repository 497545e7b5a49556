"""The native operations as torch ops, one module each."""

from catapult_ext.ops.tridiag_eigh import tridiag_eigh

__all__ = ["tridiag_eigh"]
