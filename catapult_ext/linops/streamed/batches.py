"""A data set as batches that can be read again and again, each checked to be the one it was."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._batches import map_tensors
from catapult_ext._model_call import fields_of

_ODD = 0x9E3779B97F4A7C15 >> 2 | 1  # spreads the places over all 64 bits
_BYTES_AT_ONCE = 1 << 26


class Batches:
    """Batches of an iterable, or one batch that is held.

    Args:
        data: a tensor, tuple or mapping is one batch, held in memory; anything else is iterated
            over again for every pass: a DataLoader (without shuffling), a list, an object whose
            ``__iter__`` starts again.
        where: the public function named in errors.

    Raises:
        TypeError: not iterable, or an iterator that can be read only once.
    """

    def __init__(self, data: Any, where: str) -> None:
        self._where = where
        self.held = isinstance(data, (Tensor, tuple, Mapping)) or fields_of(data) is not None
        if not self.held:
            if not isinstance(data, Iterable):
                v.fail(where, "data must be a batch or iterable", type(data).__name__, TypeError)
            if iter(data) is data:
                v.fail(
                    where,
                    "data is read once per product: give a list, a DataLoader or an object whose "
                    "__iter__ starts again",
                    type(data).__name__,
                    TypeError,
                )
        self._data: Iterable[Any] = [data] if self.held else data
        self._marks: list[int] | None = None

    def __iter__(self) -> Iterator[Any]:
        """One pass.

        Raises:
            RuntimeError: it differs from the first one.
        """
        marks: list[int] = []
        for i, batch in enumerate(self._data):
            mark = 0 if self.held else _fingerprint(batch, self._where)
            if self._marks is not None and (i >= len(self._marks) or mark != self._marks[i]):
                self._changed(f"batch {i} is another one")
            marks.append(mark)
            yield batch
        if self._marks is not None and len(marks) < len(self._marks):
            self._changed(f"{len(marks)} batches instead of {len(self._marks)}")
        self._marks = marks

    def _changed(self, how: str) -> None:
        raise RuntimeError(
            f"catapult_ext.{self._where}: the data changed between two passes ({how}); "
            "turn off shuffling and random augmentation"
        )


def crc(values: Tensor, mark: int = 0) -> int:
    """CRC of a tensor's bytes, continued from ``mark``; on a GPU of their sum, made there."""
    data = values.detach().contiguous().reshape(-1).view(torch.uint8)
    if data.is_cuda:
        data = device_sum(data).cpu().view(torch.uint8)
    return zlib.crc32(data.numpy().data, mark)


def device_sum(data: Tensor) -> Tensor:
    """Sum of the words of 4 bytes, each times an odd number of its own, modulo 2^64; (1,).

    One word that changes always shows, and so do two that change places.
    """
    total = data.new_zeros(1, dtype=torch.int64)
    for start in range(0, len(data), _BYTES_AT_ONCE):
        piece = data[start : start + _BYTES_AT_ONCE]
        words = torch.nn.functional.pad(piece, (0, -len(piece) % 4)).view(torch.int32)
        places = torch.arange(len(words), device=data.device) + start // 4
        total += (words.long() * (2 * _ODD * places + 1)).sum()
    return total


def _strided_parts(value: Tensor) -> list[Tensor]:
    """The tensor itself, or indices and values of a sparse one."""
    if value.layout == torch.strided:
        return [value]
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
        return [value.indices(), value.values()]
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [value.ccol_indices(), value.row_indices(), value.values()]
    return [value.crow_indices(), value.col_indices(), value.values()]


def _fingerprint(batch: Any, where: str) -> int:
    """CRC of every tensor of the batch, shapes included."""
    mark = 0

    def tensor(leaf: Tensor) -> None:
        nonlocal mark
        if leaf.is_nested or leaf.is_meta:
            held = "a nested tensor" if leaf.is_nested else f"{leaf.layout} on {leaf.device}"
            v.fail(where, "tensors of a batch must be dense and hold values", held, TypeError)
        mark = zlib.crc32(repr((tuple(leaf.shape), leaf.dtype)).encode(), mark)
        for part in _strided_parts(leaf):
            mark = crc(part, mark)

    def other(leaf: Any) -> None:
        nonlocal mark
        named = fields_of(leaf)
        if named is not None:  # a graph batch, made again in every pass
            map_tensors(named, tensor, other)
        elif type(leaf).__repr__ is not object.__repr__:  # else an address, not what it holds
            mark = zlib.crc32(repr(leaf).encode(), mark)

    map_tensors(batch, tensor, other)
    return mark
