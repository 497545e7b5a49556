"""Lightning: callbacks that step a tracker or an edge meter and log what they find."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from catapult_ext import _validate as v
from catapult_ext.probes.edge_meter import EdgeMeter
from catapult_ext.probes.loggers import edge_numbers
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

    Every probe goes to all loggers of the trainer at once, whatever its ``log_every_n_steps``:
    ``curvature/lambda_1`` ..., ``curvature/error_1`` ..., ``curvature/eta_lambda_over_threshold``,
    ``curvature/overhead`` and, with ``full_batch``, ``curvature/zeta``; callbacks that monitor
    numbers see them too. Batches that are pairs ``(x, y)`` reach a tracker without a fixed probe
    set.  The optimizer's rate is read from the trainer where the tracker has none.  Checkpoints of
    the trainer hold the tracker's state.

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
            made = len(tracker.probes)
            tracker.start()
            for row in tracker.probes[made:]:  # that of the start
                _log(trainer, tracker.numbers(row))

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == self.steps:  # gradients are still being accumulated
                return
            self.steps = trainer.global_step
            row = tracker.step(loss_of(outputs), batch=batch)
            if row is not None:
                _log(trainer, tracker.numbers(row))
                pl_module.log_dict(tracker.numbers(row), logger=False)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            tracker.close()

        def state_dict(self) -> dict[str, Any]:
            return tracker.state_dict()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            tracker.load_state_dict(state)

    return CurvatureCallback()


def _log(trainer: Any, numbers: dict[str, float]) -> None:
    """To the loggers themselves: ``log_dict`` drops what falls between ``log_every_n_steps``."""
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)


def edge_lightning_callback(meter: EdgeMeter) -> Any:
    """A ``lightning.pytorch.Callback`` that steps an :class:`~catapult_ext.EdgeMeter`.

    Every row goes to all loggers of the trainer: ``edge/zeta`` and, with curvature, ``edge/chi``,
    ``edge/varsigma``, ``edge/tau``.  Checkpoints of the trainer hold the meter's state.
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
                _log(trainer, edge_numbers(row))
                pl_module.log_dict(edge_numbers(row), logger=False)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            meter.close()

        def state_dict(self) -> dict[str, Any]:
            return meter.state_dict()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            meter.load_state_dict(state)

    return EdgeCallback()
