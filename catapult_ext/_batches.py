"""Data as people have them: pairs, dictionaries, records and loaders as inputs and labels."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext._free_memory import free_bytes
from catapult_ext._model_call import LABELS, fields_of

_STREAMED = (
    "or take cx.StreamedNTK, cx.StreamedGGN or cx.StreamedHessian, which read batch by batch"
)
_SHARE = 0.25  # of the free memory, that joined batches may take


class Batch(NamedTuple):
    """Inputs and labels.

    Attributes:
        x: what the model is called with.
        y: what the loss compares its outputs with.
        inside: the labels are a field of the inputs as well, so that a model may see them.
    """

    x: Any
    y: Any
    inside: bool


def batch_of(data: Any, where: str) -> Batch:
    """Inputs and labels of ``data``.

    Args:
        data: a pair ``(x, y)``; a mapping, named tuple, dataclass or graph batch with a field named
            as one of ``LABELS``; or an iterable of these (a DataLoader), which is read once and
            joined in memory.
        where: the public function named in errors.

    Raises:
        TypeError: another form, no labels, or batches that do not fit together.
    """
    if is_stream(data):
        data = joined(data, where)
    named = fields_of(data)
    pair = isinstance(data, Sequence) and not isinstance(data, str) and len(data) == 2
    if named is None or (pair and not any(name in named for name in LABELS)):
        if not pair:
            _refuse(data, where)
        return Batch(data[0], data[1], False)
    found = [name for name in LABELS if named.get(name) is not None]
    if not found:
        v.fail(
            where,
            f"data must hold labels in a field named {', '.join(LABELS)}, or be a pair (x, y); "
            "loss=None takes the model's own loss",
            f"{type(data).__name__} with {', '.join(named) or 'no field'}",
            TypeError,
        )
    return Batch(data, named[found[0]], True)


def _refuse(data: Any, where: str) -> NoReturn:
    count = f" of {len(data)}" if isinstance(data, Sequence) and not isinstance(data, str) else ""
    several = " as ((x1, x2), y)" if count else ""
    v.fail(
        where,
        f"data must be a pair (x, y){several}, a batch with a field of labels, or a DataLoader",
        f"{type(data).__name__}{count}",
        TypeError,
    )


def inputs_of(data: Any, where: str) -> Any:
    """Inputs alone: a loader is read once and joined, and labels of its pairs are left out."""
    stream = not isinstance(data, list) and is_stream(data)  # a list is one input of a model
    return inputs_in(joined(data, where)) if stream else data


def inputs_in(batch: Any) -> Any:
    """The inputs of one batch of a loader: ``x`` of the lists ``[x]`` and ``[x, y]``."""
    pair = type(batch) in (list, tuple) and len(batch) in (1, 2)
    return batch[0] if pair else batch


def is_stream(data: Any) -> bool:
    """Whether ``data`` is an iterable of batches: a DataLoader, a generator, a list of batches."""
    if isinstance(data, list):
        return len(data) > 0 and all(_is_batch(item) for item in data)
    closed = isinstance(data, (Tensor, tuple, str, bytes, Mapping)) or fields_of(data) is not None
    return not closed and isinstance(data, Iterable) and not hasattr(data, "__array__")


def _is_batch(value: Any) -> bool:
    """A pair whose second part is a tensor, or a batch with labels."""
    if type(value) in (list, tuple):
        return len(value) == 2 and isinstance(value[1], Tensor)
    named = fields_of(value)
    return named is not None and any(name in named for name in LABELS)


def joined(batches: Iterable[Any], where: str) -> Any:
    """All batches of one reading as one, in its order.

    Tensors of as many rows as the batch are put one after another; all else must be the same in
    every batch.

    Raises:
        TypeError: no batch, or batches that do not fit together.
        ValueError: batches that take more than a quarter of the free memory.
    """
    parts, size = [], 0
    room = _SHARE * free_bytes()
    for part in batches:
        parts.append(part)
        size += sum(t.numel() * t.element_size() for t in tensors_of(part))
        wanted = f"the batches of a loader must fit a quarter of the free memory; {_STREAMED}"
        v.require(2 * size <= room, where, wanted, f"{size >> 20} MiB and more")
    if not parts:
        v.fail(where, "a loader must give batches", "none", TypeError)
    if len(parts) == 1:
        return parts[0]
    counts = [count_samples(part) for part in parts]
    try:
        return _joined(parts, counts)
    except (TypeError, ValueError, RuntimeError) as error:
        wanted = f"the batches of a loader must fit together (pad them to one shape), {_STREAMED}"
        v.fail(where, wanted, error, TypeError)


def _joined(values: list[Any], counts: list[int]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        rows = [t.shape[0] if t.dim() else -1 for t in values]
        if rows == counts:
            return torch.cat(values)
        if all(torch.equal(first, t) for t in values):
            return first
        raise ValueError(f"a tensor of {rows[:3]}... rows in batches of {counts[:3]}...")
    if isinstance(first, Mapping):
        return {k: _joined([part[k] for part in values], counts) for k in first}
    if isinstance(first, (tuple, list)):
        items = [_joined(list(column), counts) for column in zip(*values, strict=True)]
        return first._make(items) if hasattr(first, "_make") else type(first)(items)
    if dataclasses.is_dataclass(first):
        return _with_fields(
            first,
            {
                f.name: _joined([getattr(part, f.name) for part in values], counts)
                for f in dataclasses.fields(first)
            },
        )
    if all(type(part) in (str, int, float, bool, type(None)) for part in values):
        if any(part != first for part in values):
            raise ValueError(f"{first!r} and other values")
        return first
    raise TypeError(f"{type(first).__name__} cannot be joined")


def _with_fields(value: Any, fields: Mapping[str, Any]) -> Any:
    out = copy.copy(value)
    for name, field in fields.items():
        object.__setattr__(out, name, field)  # a frozen dataclass is still a record
    return out


def map_tensors(value: Any, change: Callable[[Tensor], Any], other: Any = None) -> Any:
    """The same mappings, sequences and dataclasses around ``change`` of each tensor.

    Args:
        value: nested as inputs are.
        change: what stands for a tensor.
        other: what stands for anything else; None keeps it.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: map_tensors(a, change, other) for k, a in value.items()}
    if isinstance(value, (tuple, list)):
        items = [map_tensors(a, change, other) for a in value]
        # a packed sequence checks its fields, which were right before
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return _with_fields(value, {k: map_tensors(a, change, other) for k, a in named.items()})
    return value if other is None else other(value)


def one_pass(call: Callable[[], Any]) -> Any:
    """Result of ``call``, without a graph where gradients are off.

    A pass that needs a graph, for derivatives by its inputs, is repeated with gradients on.
    """
    try:
        return call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if torch.is_grad_enabled():
            raise
    with torch.enable_grad():
        return map_tensors(call(), Tensor.detach)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested mappings, sequences and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        parts: Any = value.values()
    elif isinstance(value, (tuple, list)):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, f.name) for f in dataclasses.fields(value)]
    else:
        return []
    return [t for part in parts for t in tensors_of(part)]


def count_samples(x: Any, y: Any = None) -> int:
    """N of inputs: the leading size of the labels if an input has it, else the most common one.

    Constants next to the batch (positions, an adjacency) may have any other leading size.
    """
    sizes = [t.shape[0] for t in tensors_of(x) if t.dim()]
    if isinstance(y, Tensor) and y.dim() and y.shape[0] in sizes:
        return y.shape[0]
    return Counter(sizes).most_common(1)[0][0] if sizes else 1  # of equals the first one


def first_labels(y: Any, count: int | None, n: int) -> Any:
    """The labels of the first ``count`` of ``n`` samples, of which each may have several rows."""
    if count is None or count >= n or not isinstance(y, Tensor) or not y.dim():
        return y
    return y[: count * (len(y) // n)] if len(y) % n == 0 else y


def first_samples(batch: Any, count: int | None, n: int) -> Any:
    """The first ``count`` of the ``n`` samples of inputs or labels; constants stay whole."""
    if count is None or count >= n:
        return batch
    return map_tensors(batch, lambda t: t[:count] if t.dim() and t.shape[0] == n else t)
