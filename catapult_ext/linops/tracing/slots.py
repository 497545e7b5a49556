"""Numbers of the tensors of a pass, none of which is kept alive by them."""

from __future__ import annotations

from typing import Any
from weakref import ref

from torch import Tensor

_Form = tuple[Any, ...]  # how a tensor lies in its memory


class Slots:
    """Slots of tensors, which it does not keep alive.

    An entry of a tensor that died stays until another one has its ``id``, and is never found.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[ref[Tensor], int]] = {}

    def put(self, tensor: Tensor, slot: int) -> None:
        """Note the slot of a tensor."""
        self._held[id(tensor)] = ref(tensor), slot

    def get(self, tensor: Tensor) -> int | None:
        """The slot of a tensor; None of one that has none."""
        found = self._held.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None


class Places:
    """Slots by places in memory, which it does not keep: those of freed memory are forgotten."""

    def __init__(self) -> None:
        self._held: dict[int, dict[_Form, int]] = {}  # by storage
        self._watches: dict[int, ref[Any]] = {}

    def put(self, tensor: Tensor, slot: int) -> None:
        """Note the slot of whatever lies where ``tensor`` does."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        forms = self._held.get(key)
        if forms is None:
            forms = self._held[key] = {}
            held, watches = self._held, self._watches

            def gone(_: Any) -> None:
                held.pop(key, None)
                watches.pop(key, None)

            watches[key] = ref(storage, gone)
        forms[_form(tensor)] = slot

    def get(self, tensor: Tensor) -> int | None:
        """The slot of what lies where ``tensor`` does; None where nothing noted does."""
        forms = self._held.get(tensor.untyped_storage()._cdata)
        return None if forms is None else forms.get(_form(tensor))


def _form(tensor: Tensor) -> _Form:
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
