"""Where the numbers of probes go: W&B, Trackio, TensorBoard, Lightning's loggers, any function."""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from catapult_ext import _validate as v
from catapult_ext.probes.edge_row import EdgeRow
from catapult_ext.probes.record import Row

Log = Callable[[Mapping[str, float], int], Any]
_CHANNEL = logging.getLogger("catapult_ext")
_NAMED = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard"}
_NEEDS = (
    "log must be a function of (numbers, step), an object with log, log_metrics or add_scalar, "
    f"one of {', '.join(map(repr, _NAMED))}, or a list of these"
)


def logger_of(target: Any, where: str) -> Log:
    """A function of (numbers, step) that hands them to ``target``.

    Args:
        target: an object with ``log(numbers, step=)`` (a W&B run, ``wandb``, ``trackio``), with
            ``log_metrics(numbers, step=)`` (Lightning's loggers, MLflow), with
            ``add_scalar(name, value, step)`` (TensorBoard's SummaryWriter); the name of a package
            that is imported for it; a function of ``(numbers, step)``; or a list of these.
        where: public function named in errors.

    Raises:
        TypeError: something else.
        RuntimeError: a package that is named and not installed.
    """
    if isinstance(target, (list, tuple)):
        logs = [logger_of(one, where) for one in target]
        return lambda numbers, step: [log(numbers, step) for log in logs]
    if isinstance(target, str):
        return logger_of(_imported(target, where), where)
    if hasattr(target, "add_scalar"):
        return lambda numbers, step: [
            target.add_scalar(name, value, step) for name, value in numbers.items()
        ]
    for method in ("log_metrics", "log"):
        log = getattr(target, method, None)
        if callable(log):
            return lambda numbers, step: log(dict(numbers), step=step)
    if not callable(target):
        v.fail(where, _NEEDS, type(target).__name__, TypeError)
    return lambda numbers, step: target(dict(numbers), step)


def _imported(name: str, where: str) -> Any:
    v.require(name in _NAMED, where, _NEEDS, repr(name))
    try:
        if name == "tensorboard":
            return importlib.import_module("torch.utils.tensorboard").SummaryWriter()
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(
            f"catapult_ext.{where}: log={name!r} needs {name}: pip install {_NAMED[name]}"
        ) from error


class Logging:
    """Logs without ending the training that is watched: what a logger raises is warned of, once.

    Args:
        target: see :func:`logger_of`; None logs nothing.
        where: public function named in errors.
        level: level of the lines in the channel ``catapult_ext`` of :mod:`logging`.
    """

    def __init__(self, target: Any, where: str, level: int = logging.INFO) -> None:
        self._log = None if target is None else logger_of(target, where)
        self._where, self._level, self._warned = where, level, False

    def __call__(self, numbers: Mapping[str, float], step: int) -> None:
        """Hand over ``numbers`` of ``step``."""
        if _CHANNEL.isEnabledFor(self._level):
            shown = ", ".join(f"{name} {value:.5g}" for name, value in numbers.items())
            _CHANNEL.log(self._level, "%s at step %d: %s", self._where, step, shown)
        if self._log is None:
            return
        try:
            self._log(numbers, step)
        except Exception as error:
            if not self._warned:
                kind = type(error).__name__
                text = f"catapult_ext.{self._where}: the logger fails ({kind}: {error})"
                warnings.warn(text, RuntimeWarning, stacklevel=4)
            self._warned = True


def probe_numbers(row: Row, zeta: float | None, overhead: float) -> dict[str, float]:
    """A probe as flat numbers, without those that were not measured.

    Args:
        row: row of the probe.
        zeta: zeta of the last step that has one.
        overhead: probing over training time.
    """
    out = {f"curvature/lambda_{i}": value for i, value in enumerate(row["values"], 1)}
    out |= {f"curvature/error_{i}": value for i, value in enumerate(row["errors"], 1)}
    product, threshold = row["eta_lambda"], row["threshold"]
    if product is not None and threshold is not None:
        out["curvature/eta_lambda_over_threshold"] = product / threshold
    if zeta is not None:
        out["curvature/zeta"] = zeta
    return out | {"curvature/overhead": overhead}


def edge_numbers(row: EdgeRow) -> dict[str, float]:
    """The numbers of a meter's row, without those that were not measured."""
    found = {key: row[key] for key in ("zeta", "chi", "varsigma", "tau")}
    return {f"edge/{key}": value for key, value in found.items() if math.isfinite(value)}
