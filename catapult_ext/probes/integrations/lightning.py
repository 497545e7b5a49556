"""Lightning: a callback that steps a tracker and logs its probes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from catapult_ext import _validate as v
from catapult_ext.probes.record import Row
from catapult_ext.probes.tracker import CurvatureTracker

if TYPE_CHECKING:
    from torch import Tensor


def _lightning() -> Any:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise RuntimeError(
        "catapult_ext.probes.integrations: lightning_callback needs Lightning: "
        "pip install lightning"
    )


def loss_of(outputs: Any) -> Tensor | float | None:
    """The loss in what a training step returned: itself, or under the key ``loss``."""
    return outputs.get("loss") if isinstance(outputs, dict) else outputs


def lightning_callback(tracker: CurvatureTracker) -> Any:
    """A ``lightning.pytorch.Callback`` that steps ``tracker`` after every optimizer step.

    Logs ``curvature/lambda_1`` ... and ``curvature/overhead`` at every probe. Batches that are
    pairs ``(x, y)`` reach a tracker without a fixed probe set.  The optimizer's rate is read from
    the trainer where the tracker has none.

    Raises:
        TypeError: no CurvatureTracker.
        RuntimeError: Lightning is not installed.
    """
    if not isinstance(tracker, CurvatureTracker):
        kind = type(tracker).__name__
        v.fail("lightning_callback", "tracker must be a CurvatureTracker", kind, TypeError)
    base = _lightning().Callback

    class CurvatureCallback(base):  # type: ignore[misc, valid-type]
        """Steps the tracker; see :func:`lightning_callback`."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if tracker.optimizer is None and len(trainer.optimizers) == 1:
                held = trainer.optimizers[0]
                tracker.optimizer = getattr(held, "optimizer", held)
            self.steps = trainer.global_step
            tracker.start()

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == self.steps:  # gradients are still being accumulated
                return
            self.steps = trainer.global_step
            row = tracker.step(loss_of(outputs), batch=batch)
            if row is not None:
                pl_module.log_dict(logged(tracker, row))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            tracker.close()

    return CurvatureCallback()


def logged(tracker: CurvatureTracker, row: Row) -> dict[str, float]:
    """A probe as flat numbers for a logger."""
    out = {f"curvature/lambda_{i + 1}": value for i, value in enumerate(row["values"])}
    return out | {"curvature/overhead": tracker.overhead.share}
