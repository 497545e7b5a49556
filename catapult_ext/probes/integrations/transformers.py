"""Transformers: a TrainerCallback that steps a tracker and logs its probes."""

from __future__ import annotations

import importlib
from typing import Any

from catapult_ext import _validate as v
from catapult_ext.probes.integrations.lightning import logged
from catapult_ext.probes.tracker import CurvatureTracker


def trainer_callback(tracker: CurvatureTracker) -> Any:
    """A ``transformers.TrainerCallback`` that steps ``tracker`` after every optimizer step.

    The tracker needs a fixed probe set (the Trainer hands its batches to no callback) and a module
    that returns the logits as a tensor, e.g. one that wraps the model and returns ``.logits``.
    Probes are added to ``state.log_history`` as ``curvature/lambda_1`` ...

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
    try:
        base = importlib.import_module("transformers").TrainerCallback
    except ImportError as error:
        raise RuntimeError(
            "catapult_ext.probes.integrations: trainer_callback needs Transformers: "
            "pip install transformers"
        ) from error

    class CurvatureCallback(base):  # type: ignore[misc, valid-type]
        """Steps the tracker; see :func:`trainer_callback`."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            optimizer = held.get("optimizer")
            if tracker.optimizer is None and optimizer is not None:
                tracker.optimizer = getattr(optimizer, "optimizer", optimizer)
            tracker.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            row = tracker.step()
            if row is not None:
                state.log_history.append({**logged(tracker, row), "step": state.global_step})

        def on_train_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            tracker.close()

    return CurvatureCallback()
