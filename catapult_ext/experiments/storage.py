"""How a sweep is identified, timed and written to its run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catapult_ext import losses
from catapult_ext.data import update_digest
from catapult_ext.experiments.summary import closing
from catapult_ext.figures.style import require_matplotlib
from catapult_ext.figures.sweep import CAPTIONS, sweep_figures
from catapult_ext.runs import RunFolder, report

if TYPE_CHECKING:
    from catapult_ext.experiments.result import SweepResult


def describe(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON values, for the identity of a run."""
    return dataclasses.asdict(config)


def describe_loss(loss: Any) -> Any:
    """A loss as JSON values: its name, or the class and every setting of a loss module."""
    if isinstance(loss, str):
        return loss
    settings: dict[str, Any] = {"type": getattr(loss, "name", type(loss).__name__)}
    for name, value in sorted(getattr(loss, "__dict__", {}).items()):
        if isinstance(value, (bool, int, float, str)):
            settings[name] = value
    for name, value in getattr(loss, "_buffers", {}).items():
        if isinstance(value, Tensor):
            digest = hashlib.sha256()
            update_digest(digest, name, value)
            settings[name] = digest.hexdigest()[:16]
    inner = getattr(loss, "module", None)
    if isinstance(loss, losses.Loss) and inner is not None:
        settings["module"] = describe_loss(inner)
    return settings


def weights_digest(model: torch.nn.Module) -> str:
    """Identity of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        update_digest(digest, name, value)
    return digest.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions and threads: noted beside the results, no part of a run's identity."""
    from catapult_ext import __version__

    return {
        "catapult_ext": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def require_reports() -> None:
    """Fail before training, not after it, where the pictures could not be drawn.

    Raises:
        RuntimeError: matplotlib is missing; the message names the extra.
    """
    require_matplotlib()


def note_time(folder: RunFolder, part: str, seconds: float, processor: float | None = None) -> None:
    """Add the time of a finished part to timing.json, which holds all times and only times.

    ``processor`` seconds, of all threads, are what a busy machine does not blur.
    """
    known = folder.read_json("timing.json")
    document = known if isinstance(known, dict) else {}
    for name, value in (("seconds", seconds), ("processor_seconds", processor)):
        if value is not None:
            parts = document.setdefault(name, {})
            parts[part] = round(value, 3)
            document[f"total_{name}"] = round(sum(parts.values()), 3)
    folder.write_json("timing.json", document)


def write_reports(folder: RunFolder, result: SweepResult, title: str) -> None:
    """Write summary.json, summary.csv, the pictures and report.html of a finished sweep."""
    folder.write_json("summary.json", result.summary)
    folder.write_csv("summary.csv", result.rows)
    figures = sweep_figures(result.summary, result.records)
    for name, png in figures.items():
        folder.write_bytes(f"fig_{name}.png", png)
    page = report.page(
        title,
        [closing(result.summary)],
        result.table(),
        {CAPTIONS[name]: png for name, png in figures.items()},
        {"Configuration": folder.config, "Environment": folder.started_in},
    )
    folder.write_bytes("report.html", page.encode())
