"""Small networks from public packages, built with random weights, each with two samples.

An entry is a function without arguments that returns a :class:`Case`.  The files ``from_*.py`` fill
the table; a package that is not installed gives no entries.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent


@dataclass
class Case:
    """A model, its inputs, and how a user picks outputs (N, O) from what it returns.

    ``labelled`` makes the model and the batch with labels, where these are others.
    """

    model: nn.Module
    inputs: Any
    forward: Callable[[nn.Module, Any], Tensor]
    hessian: bool = True  # False: torch itself has no or a wrong second derivative
    labelled: Callable[[], tuple[nn.Module, dict[str, Tensor]]] | None = None


@dataclass(frozen=True)
class Entry:
    """A named case, its package, and whether it belongs to the default run."""

    name: str
    package: str
    build: Callable[[], Case]
    default: bool = False


ENTRIES: dict[str, Entry] = {}


def installed(package: str) -> bool:
    """True if ``package`` can be found, without importing it."""
    return importlib.util.find_spec(package) is not None


def add(package: str, name: str, build: Callable[[], Case], *, default: bool = False) -> None:
    """Put a case into the table under ``package/name``."""
    key = f"{package}/{name}"
    assert key not in ENTRIES, f"{key} is listed twice"
    ENTRIES[key] = Entry(key, package, build, default)


def words(text: str) -> list[str]:
    """The words of a text: a long list of names in a few lines."""
    return text.split()


def images(size: int, channels: int = 3, n: int = 2) -> Tensor:
    """Seeded images (n, channels, size, size)."""
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens(length: int, n: int = 2, vocabulary: int = 30) -> Tensor:
    """Seeded token ids (n, length) from 3 on: no padding, begin or end."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, vocabulary, (n, length), generator=generator)


def declare_torchvision_operators() -> None:
    """Declare torchvision's compiled operators where its binary does not fit this torch.

    timm and vit-pytorch import torchvision for transforms; none of their networks here calls one of
    its compiled operators.  Without the declarations the import of torchvision raises.
    """
    if not installed("torchvision"):
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        pooled = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
        names = [*pooled, *(f"_{name}_backward" for name in pooled), "nms", "qnms", "qroi_align"]
        for name in (*names, "box_iou_rotated"):
            library.define(f"{name}(Tensor x) -> Tensor")
        globals()["_torchvision_operators"] = library  # kept alive: it withdraws them when it dies


def load() -> dict[str, Entry]:
    """The table, with every package that is installed."""
    if not ENTRIES:
        for path in sorted(FOLDER.glob("from_*.py")):
            importlib.import_module(f"architectures.{path.stem}")
    return ENTRIES
