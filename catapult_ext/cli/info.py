"""catapult-ext info: what is installed and what it can use."""

from __future__ import annotations

import importlib.metadata
import platform

from catapult_ext import build_info
from catapult_ext.cli.console import console


def info() -> None:
    """Show versions, compiler, instruction sets and devices."""
    facts = {"python": platform.python_version(), **build_info()}
    for package in ("numpy", "matplotlib", "rich", "typer", "scikit-learn"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    shown = console()
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        shown.print(f"{name:<{width}}  {text}", highlight=False, markup=False, soft_wrap=True)
