"""Base of operators that keep the graph of a forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from typing_extensions import Self


class KeepsGraph:
    """Operators that keep the graph of a forward pass: never pickled, and shared by copies.

    An operator holds copies of model and data that nothing changes, so that one graph serves all.
    """

    name: str

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"catapult_ext.{self.name}: cannot be pickled, since it keeps the graph of a forward "
            "pass; send model and data, and build it there"
        )

    def __copy__(self) -> Self:
        out = type(self).__new__(type(self))
        out.__dict__.update(self.__dict__)
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()
