"""A :class:`~catapult_ext.CurvatureTracker` or EdgeMeter in other people's training loops."""

from catapult_ext.probes.integrations.lightning import edge_lightning_callback, lightning_callback
from catapult_ext.probes.integrations.transformers import edge_trainer_callback, trainer_callback

__all__ = [
    "edge_lightning_callback",
    "edge_trainer_callback",
    "lightning_callback",
    "trainer_callback",
]


def __dir__() -> list[str]:
    return __all__
