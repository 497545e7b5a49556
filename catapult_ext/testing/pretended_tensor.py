"""A tensor that says ``cuda:0`` and holds its numbers on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DEVICE = torch.device("cuda", 0)


class PretendedTensor(Tensor):
    """A tensor on the pretended device; ``held`` is the one of the CPU that has its numbers."""

    __slots__ = ("held",)  # no entry of __dict__, which copies of tensors may share
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendedTensor:
        """The tensor of ``held``'s shape, strides and dtype, which autograd sees on ``meta``."""
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride() if held.layout == torch.strided else None,
            storage_offset=held.storage_offset() if held.layout == torch.strided else 0,
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device("meta"),
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def data_ptr(self) -> int:
        """Address of the numbers: views of one tensor can be told from copies."""
        return self.held.data_ptr()

    def get_device(self) -> int:
        """Index of the device."""
        return 0

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as torch refuses it."""
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu()")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if self.dim() == 0 else repr(self)

    def tolist(self) -> Any:
        """The numbers, by a copy to the host."""
        return self.cpu().tolist()

    def cuda(self, *args: Any, **kwargs: Any) -> PretendedTensor:
        """The tensor itself, which is on the device already."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        with torch.no_grad():
            copied = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        else:
            copied.requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PretendedTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"catapult_ext.testing.pretended: {func} of a pretended tensor outside pretended_cuda()"
        )


def held_of(value: Any) -> Any:
    """The tensor of the CPU inside a pretended one; any other value as it is."""
    return value.held if isinstance(value, PretendedTensor) else value
