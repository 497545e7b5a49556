"""Products of a frozen model as CUDA graphs: captured once for each width, then one launch each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_KEPT = 4  # widths; each graph holds the memory of a product


@dataclass(frozen=True)
class _Captured:
    graph: Any  # torch.cuda.CUDAGraph
    vectors: Tensor  # what the graph multiplies
    result: Tensor  # where it leaves the product


class CapturedProducts:
    """Products captured as CUDA graphs, on the stream on which the model was linearized.

    Autograd runs a backward on the stream of its forward pass, which must therefore be that of the
    capture.  What is captured reads parameters, inputs and activations that never change, so that a
    graph stays right as long as it lives.

    Args:
        where: the public function named in errors.
        device: device of the model; on any but a CUDA device products are made as ever.
    """

    def __init__(self, where: str, device: torch.device) -> None:
        self._where, self._device = where, device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._captured: dict[tuple[int, ...], _Captured] = {}

    def another(self) -> CapturedProducts:
        """Graphs on the same stream for another operator of the same linearization."""
        out = copy.copy(self)
        out._captured = {}
        return out

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Work given inside runs on the stream of the graphs, in order with the caller's."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):
                yield
            before.wait_stream(self._stream)

    def product(self, multiply: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
        """``multiply(vectors)``, which is always the same function of (n, K).

        Raises:
            RuntimeError: the product cannot be captured, as where it waits for the device.
        """
        if self._stream is None:
            return multiply(vectors)
        found = self._captured.pop(tuple(vectors.shape), None)
        if found is None:
            found = self._capture(multiply, vectors)
        self._captured[tuple(vectors.shape)] = found  # the last one used is the last to go
        if len(self._captured) > _KEPT:
            del self._captured[next(iter(self._captured))]
        with self.stream():
            found.vectors.copy_(vectors)
            found.graph.replay()
        return found.result.clone()

    def _capture(self, multiply: Callable[[Tensor], Tensor], vectors: Tensor) -> _Captured:
        with self.stream():
            given = vectors.clone()
            multiply(given)  # a graph must not meet a library's first use, nor a first proof
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=self._stream):
                    result = multiply(given)
            except RuntimeError as error:
                raise RuntimeError(
                    f"catapult_ext.{self._where}: graphs=True: the product cannot be captured as a "
                    f"CUDA graph ({error}); leave graphs out"
                ) from error
        return _Captured(graph, given, result)
