"""The native ops in plain torch: the oracle of the tests."""

from catapult_ext.reference.tridiag_eigh import tridiag_eigh

__all__ = ["tridiag_eigh"]
