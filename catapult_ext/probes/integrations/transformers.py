"""Transformers: TrainerCallbacks that step a tracker or an edge meter and log what they find."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.probes.edge_meter import EdgeMeter
from catapult_ext.probes.integrations.lightning import loss_of
from catapult_ext.probes.loggers import edge_numbers
from catapult_ext.probes.tracker import CurvatureTracker

_FRAMES = 8  # callers of a callback among which the Trainer's handler is looked for


def trainer_callback(tracker: CurvatureTracker) -> Any:
    """A ``transformers.TrainerCallback`` that steps ``tracker`` after every optimizer step.

    The tracker needs a fixed probe set (callbacks do not see the Trainer's batches) and a module
    that returns the logits, as a tensor or as ``.logits``.  Every probe is logged as the Trainer
    logs its own numbers, whatever its ``logging_steps``: to ``state.log_history``, the console and
    all of ``report_to``, as ``curvature/lambda_1`` ..., ``curvature/error_1`` ...,
    ``curvature/eta_lambda_over_threshold``, ``curvature/overhead`` and, with ``full_batch``,
    ``curvature/zeta``.

    Raises:
        TypeError: no CurvatureTracker.
        ValueError: a tracker without a fixed probe set.
        RuntimeError: Transformers is not installed.
    """
    where = "trainer_callback"
    if not isinstance(tracker, CurvatureTracker):
        kind = type(tracker).__name__
        v.fail(where, "tracker must be a CurvatureTracker", kind, TypeError)
    if tracker.data is None:
        v.fail(where, "the tracker must have a fixed probe set", "data=None")
    base = _callback_class(where)

    class CurvatureCallback(base):  # type: ignore[misc, valid-type]
        """Steps the tracker; see :func:`trainer_callback`."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            optimizer = held.get("optimizer")
            if tracker.optimizer is None and optimizer is not None:
                tracker.optimizer = getattr(optimizer, "optimizer", optimizer)
            made = len(tracker.probes)
            with _as_trained(held.get("model")):
                tracker.start()
            for row in tracker.probes[made:]:  # that of the start
                _log(args, state, control, tracker.numbers(row))

        def on_step_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            row = tracker.step()
            if row is not None:
                _log(args, state, control, tracker.numbers(row))

        def on_train_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            tracker.close()

    return CurvatureCallback()


@contextmanager
def _as_trained(model: Any) -> Iterator[None]:
    """In the modes of training, to which a Trainer switches only at its first step."""
    modes = [] if model is None else [(m, m.training) for m in model.modules()]
    if model is not None:
        model.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _callback_class(function: str) -> Any:
    try:
        return importlib.import_module("transformers").TrainerCallback
    except ImportError as error:
        raise RuntimeError(
            f"catapult_ext.probes.integrations: {function} needs Transformers: "
            "pip install transformers"
        ) from error


def _log(args: Any, state: Any, control: Any, numbers: dict[str, float]) -> None:
    """Log as ``Trainer.log`` does, which callbacks cannot call: history, console, ``report_to``."""
    state.log_history.append({**numbers, "step": state.global_step})
    handler = _handler()
    if handler is None:
        return
    due = control.should_log  # the Trainer's own numbers are still to come
    handler.on_log(args, state, control, dict(numbers))
    control.should_log = due


def _handler() -> Any:
    """The Trainer's handler of callbacks, which is calling one of them; None if it is not found."""
    kind = importlib.import_module("transformers.trainer_callback").CallbackHandler
    frame: Any = sys._getframe(1)
    for _ in range(_FRAMES):
        if frame is None:
            return None
        caller = frame.f_locals.get("self")
        if isinstance(caller, kind):
            return caller
        frame = frame.f_back
    return None


class _Passes:
    """The training passes of a model since the last optimizer step, to make them once more."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, Any, float]] = []
        self.repeating = False

    def seen(self, _model: Any, given: Any, named: Any, outputs: Any) -> None:
        """A forward hook."""
        loss = getattr(outputs, "loss", None) if not isinstance(outputs, dict) else loss_of(outputs)
        if isinstance(loss, Tensor) and loss.requires_grad and not self.repeating:
            self.made.append((given, named, loss.item()))

    def mean(self, values: list[Any]) -> Any:
        """Over micro-batches; a Trainer that counts items has divided by all of them before."""
        counted = any(named.get("num_items_in_batch") is not None for _, named, _ in self.made)
        return sum(values) / (1 if counted else len(values))

    def again(self, model: Any) -> Any:
        """The same loss at the model's present parameters."""
        self.repeating = True
        try:
            outputs = [model(*given, **named) for given, named, _ in self.made]
        finally:
            self.repeating = False
        return self.mean([o["loss"] if isinstance(o, dict) else o.loss for o in outputs])


def edge_trainer_callback(meter: EdgeMeter) -> Any:
    """A ``transformers.TrainerCallback`` that steps an :class:`~catapult_ext.EdgeMeter`.

    Batches and losses are read from the model's own forward passes, whose outputs need a ``loss``
    (attribute or key).  Rows are logged as those of :func:`trainer_callback` are, as ``edge/zeta``
    and, with curvature, ``edge/chi``, ``edge/varsigma``, ``edge/tau``.

    Raises:
        TypeError: no EdgeMeter.
        RuntimeError: Transformers is not installed.
    """
    where = "edge_trainer_callback"
    if not isinstance(meter, EdgeMeter):
        v.fail(where, "meter must be an EdgeMeter", type(meter).__name__, TypeError)
    base = _callback_class(where)
    passes = _Passes()

    class EdgeCallback(base):  # type: ignore[misc, valid-type]
        """Steps the meter; see :func:`edge_trainer_callback`."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            self.hook = meter.model.register_forward_hook(passes.seen, with_kwargs=True)

        def on_step_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            loss = passes.mean([value for _, _, value in passes.made]) if passes.made else None
            row = meter.step(loss, evaluate=lambda: passes.again(meter.model))
            passes.made.clear()
            if row is not None:
                _log(args, state, control, edge_numbers(row))

        def on_train_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            self.hook.remove()
            meter.close()

    return EdgeCallback()
