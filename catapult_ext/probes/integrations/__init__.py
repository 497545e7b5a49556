"""A :class:`~catapult_ext.CurvatureTracker` in other people's training loops."""

from catapult_ext.probes.integrations.lightning import lightning_callback
from catapult_ext.probes.integrations.transformers import trainer_callback

__all__ = ["lightning_callback", "trainer_callback"]
