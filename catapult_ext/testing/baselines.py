"""Baselines of native ops: torch at a stated precision, the best solver there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """float32 products of torch on CUDA (cuBLAS) in "ieee" or "tf32" arithmetic, inside."""
    settings: Any = torch.backends.cuda.matmul
    key = "fp32_precision" if hasattr(settings, "fp32_precision") else "allow_tf32"
    before = getattr(settings, key)
    setattr(settings, key, name if key == "fp32_precision" else name == "tf32")
    try:
        yield
    finally:
        setattr(settings, key, before)


def symmetric_eigenvalues() -> dict[str, Callable[[Tensor], Any]]:
    """Name -> eigenvalues of a batch of symmetric matrices (R, n, n).

    Before torch 2.12 ``eigvalsh`` of a CUDA batch solves one matrix after the other, which its name
    says; CuPy's batched solver joins where it is installed and sees a GPU.
    """
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    name = "torch.linalg.eigvalsh" + ("" if release >= (2, 12) else " (one matrix at a time)")
    found: dict[str, Callable[[Tensor], Any]] = {name: torch.linalg.eigvalsh}
    try:
        import cupy
    except ImportError:
        return found

    def solved(matrices: Tensor) -> Any:
        return cupy.linalg.eigvalsh(cupy.from_dlpack(matrices))

    if torch.cuda.is_available():
        found["cupy.linalg.eigvalsh"] = solved
    return found
