"""Helpers shared by tests and benchmarks; public, so that dependants can use them too."""

from catapult_ext.testing.backends import Backend, backends
from catapult_ext.testing.tolerances import allowed_error, cast, max_error, one_thread

__all__ = ["Backend", "allowed_error", "backends", "cast", "max_error", "one_thread"]


def __dir__() -> list[str]:
    return __all__
