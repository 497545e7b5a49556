"""Lightning: callbacks that step a tracker or an edge meter and log what they find."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

from catapult_ext import _validate as v
from catapult_ext.probes.edge_meter import EdgeMeter
from catapult_ext.probes.edge_row import EdgeRow
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


def edge_lightning_callback(meter: EdgeMeter) -> Any:
    """A ``lightning.pytorch.Callback`` that steps an :class:`~catapult_ext.EdgeMeter`.

    Logs ``edge/zeta`` and, at rows with curvature, ``edge/chi``, ``edge/varsigma``, ``edge/tau``.
    The loss is what ``training_step`` returns; where the meter evaluates a batch again it calls
    ``training_step`` once more.  For one optimizer under automatic optimization, without
    accumulation.  The meter's model is the network that ``training_step`` calls, or the module.

    Raises:
        TypeError: no EdgeMeter.
        RuntimeError: Lightning is not installed.
    """
    if not isinstance(meter, EdgeMeter):
        kind = type(meter).__name__
        v.fail("edge_lightning_callback", "meter must be an EdgeMeter", kind, TypeError)
    base = _lightning().Callback

    class EdgeCallback(base):  # type: ignore[misc, valid-type]
        """Steps the meter; see :func:`edge_lightning_callback`."""

        def on_before_optimizer_step(self, *_: Any) -> None:
            meter.hold_gradient()  # Lightning passes a closure, and clips after this call

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            def evaluate() -> Any:
                return loss_of(pl_module.training_step(batch, batch_idx))

            row = meter.step(loss_of(outputs), evaluate=evaluate)
            if row is not None:
                pl_module.log_dict(edge_logged(row))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            meter.close()

    return EdgeCallback()


def edge_logged(row: EdgeRow) -> dict[str, float]:
    """The numbers of a row for a logger, without those that were not measured."""
    found = {key: row[key] for key in ("zeta", "chi", "varsigma", "tau")}
    return {f"edge/{key}": value for key, value in found.items() if math.isfinite(value)}
