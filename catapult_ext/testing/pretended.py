"""A CUDA device that is pretended: tensors say ``cuda:0`` and compute on the CPU.

It shows what a Python layer would do on a GPU, where there is none.  Inside
:func:`pretended_cuda` tensors made on ``DEVICE``, or moved there, are :class:`PretendedTensor`.  An
operation that mixes them with tensors of the CPU is refused, as torch refuses it; so is one that
torch would allow by a copy that nobody asked for.  The native ops run the emulated CUDA code.
:class:`PretendedDevice` counts kernels, and the times that the host would wait for the device.

torch gives C++ no CUDA device without CUDA, so that a pretended tensor is one of the device
``meta`` there: under ``torch.func`` its wrappers say ``meta``, which means this device.
"""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from catapult_ext import _C, _native
from catapult_ext.linops.model.dispatch_mode import DispatchMode
from catapult_ext.testing import emulated
from catapult_ext.testing.pretended_tensor import DEVICE, PretendedTensor, held_of

_HOST = torch.device("cpu")
_FREE, _TOTAL = 64 << 30, 80 << 30  # bytes that the device says it has
# Operations whose result the host needs before it can continue: a size, a number, a verdict.
_WAITING = {
    "_local_scalar_dense": "item",
    "equal": "equal",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "_linalg_eigh": "linalg",  # torch looks at the solver's status
    "_linalg_svd": "linalg",
    "_linalg_check_errors": "linalg",
}
# Operations that give the device nothing to compute.
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_"}
_NO_KERNEL |= {"_unsafe_view", "_reshape_alias", "is_same_size", "resize_", "lift_fresh"}
_NO_KERNEL |= {"_local_scalar_dense"}


class PretendedDevice(DispatchMode):
    """Requests made to the device.

    Attributes:
        kernels: launched, by operation; of native ops those that the emulation launched.
        waits: times that the host would wait for the device, by kind.
        places: the same, by the line of the caller outside torch and this module.
        host: seconds of the pretended host; a launch costs ``launch_seconds``.
        done: the time at which the device has finished what it was given; every kernel costs
            ``kernel_seconds``.
    """

    def __init__(
        self, native: Callable[..., Any], launch_seconds: float, kernel_seconds: float
    ) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.launch_seconds, self.kernel_seconds = launch_seconds, kernel_seconds
        self.host = self.done = 0.0
        self.native = native
        self.capturing: PretendedGraph | None = None

    def clock(self) -> float:
        """The host's time in seconds, as ``time.perf_counter`` would give it."""
        return self.host

    def reset(self) -> None:
        """Forget the counts."""
        self.kernels.clear()
        self.waits.clear()
        self.places.clear()

    def wait(self, kind: str) -> None:
        """Block the host until the device has finished its queue."""
        if self.capturing is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing ({kind})")
        self.waits[kind] += 1
        self.places[f"{kind} at {_caller()}"] += 1
        self.host = max(self.host, self.done)

    def launched(self, name: str, count: int = 1) -> None:
        """The device is given ``count`` kernels."""
        self.kernels[name] += count
        self.host += count * self.launch_seconds
        self.done = max(self.done, self.host) + count * self.kernel_seconds

    def call_native(self, op: str, *args: Any) -> Any:
        """A native op on pretended tensors: its emulated CUDA code, on device 0 and stream 0."""
        held = tree_map(held_of, args)
        if self.capturing is not None:
            self.capturing.record(functools.partial(self.native, self, op), held, {}, None)
        return self.native(self, op, *held)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        here = any(isinstance(t, PretendedTensor) for t in given)
        target = kwargs.get("device")
        asked = target is not None and torch.device(target).type in ("cuda", "meta")
        if not here and not asked:
            return func(*args, **kwargs)
        if func.namespace == "catapult":  # its CUDA implementation, which ends in call_native
            with self:
                return func._op_dk(torch._C.DispatchKey.CUDA, *args, **kwargs)
        self._refuse(name, given)
        crosses = ""
        if name == "_to_copy" and target is not None and here != asked:
            crosses = "copy to the device" if asked else "copy to the host"
        self._count(func, name, args, kwargs, crosses)
        inner = dict(kwargs, device=_HOST) if target is not None else kwargs
        out = func(*tree_map(held_of, args), **tree_map(held_of, inner))
        if self.capturing is not None:
            self.capturing.record(func, args, inner, out)
        if crosses == "copy to the host":
            return out
        if not here and not any(isinstance(t, Tensor) for t in tree_leaves(out)):
            return out
        wrapped = tree_map(lambda t: PretendedTensor(t) if isinstance(t, Tensor) else t, out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)

    def _refuse(self, name: str, given: list[Tensor]) -> None:
        """Mixed devices, and copies between them that nobody asked for."""
        strangers = [t for t in given if not isinstance(t, PretendedTensor) and t.dim() > 0]
        if not strangers or len(strangers) == len(given):
            return
        if name.startswith(("index", "_index", "copy_")):
            raise RuntimeError(
                f"catapult_ext.testing.pretended: {name} copies between {DEVICE} and cpu in silence"
            )
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{DEVICE} and cpu! ({name})"
        )

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, crosses: str) -> None:
        """Count the kernel and the wait of a call; ``crosses`` names a copy between the devices."""
        view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        plain = not view and torch.Tag.inplace_view not in func.tags
        if plain and name not in _NO_KERNEL and not crosses:
            self.launched(name)
        if name in _WAITING:
            self.wait(_WAITING[name])
        elif crosses and not kwargs.get("non_blocking"):
            self.wait(crosses)
        elif name.startswith(("index", "_index")) and _by_mask(name, args):
            self.wait("boolean index")

    # What torch.cuda offers.

    def patches(self) -> dict[str, Any]:
        """Functions of ``torch.cuda`` while the device is there."""
        stream = SimpleNamespace(
            cuda_stream=0,
            device=DEVICE,
            wait_stream=lambda other: None,
            synchronize=lambda: self.wait("synchronize"),
        )

        @contextmanager
        def nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
            yield

        @contextmanager
        def graph(graph: PretendedGraph, *args: Any, **kwargs: Any) -> Iterator[None]:
            self.capturing = graph
            try:
                yield
            finally:
                self.capturing = None

        return {
            "Event": lambda **options: PretendedEvent(self),
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "current_stream": lambda device=None: stream,
            "mem_get_info": lambda device=None: (_FREE, _TOTAL),
            "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "synchronize": lambda device=None: self.wait("synchronize"),
            "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8, device="cpu"),
            "set_rng_state": lambda state, device=None: None,
            "get_rng_state_all": list,
            "set_rng_state_all": lambda states: None,
            "Stream": lambda device=None: stream,
            "stream": nothing,
            "device": nothing,
            "CUDAGraph": lambda: PretendedGraph(self),
            "graph": graph,
        }


class PretendedEvent:
    """Event: a position in the queue of the device's work."""

    def __init__(self, device: PretendedDevice) -> None:
        self._device, self._at = device, 0.0

    def record(self, stream: Any = None) -> None:
        """Set the position after all work queued so far."""
        self._at = self._device.done

    def query(self) -> bool:
        """Whether the device has reached the position."""
        return self._device.host >= self._at

    def synchronize(self) -> None:
        """Let the host wait until the device has reached the position."""
        self._device.wait("event")


class PretendedGraph:
    """A captured sequence of operations; :meth:`replay` is one launch for the host."""

    def __init__(self, device: PretendedDevice) -> None:
        self._device = device
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def record(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Keep a call, made on held tensors, and where its results lie."""
        self._calls.append((func, tree_map(held_of, args), tree_map(held_of, kwargs), out))

    def replay(self) -> None:
        """Make the calls again, into the same memory."""
        self._device.launched("graph")
        for func, args, kwargs, out in self._calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _by_mask(name: str, args: Any) -> bool:
    """Whether an index is a mask whose true entries the host must count."""
    if len(args) < 2 or not isinstance(args[1], (list, tuple)):
        return False
    given = [t for t in args[1] if isinstance(t, Tensor)]
    masks = [t for t in given if t.dtype in (torch.bool, torch.uint8)]
    filled = "put" in name and len(args) > 2 and isinstance(args[2], Tensor)
    return bool(masks) and not (filled and args[2].numel() == 1)  # which torch fills in place


def _caller() -> str:
    """The innermost line of a caller outside torch and this module."""
    skipped = (str(torch.__path__[0]), __file__.removesuffix(".py"))
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(skipped) and "contextlib" not in frame.filename:
            return "/".join(frame.filename.split("/")[-2:]) + f":{frame.lineno}"
    return "?"


def _emulated(device: PretendedDevice, op: str, *args: Any) -> Any:
    emulated.launches()
    out = getattr(emulated.emulated_module(), op)(*args, 0, 0, 1)
    device.launched(op, len(emulated.launches()))
    return out


def _on_the_cpu(device: PretendedDevice, op: str, *args: Any) -> Any:
    """The CPU's code for the same op, counted as one kernel: for sizes that emulation cannot."""
    if not op.endswith("_workspace"):
        device.launched(op)
    return getattr(_C, op)(*args, -1, 0, 1)


def _real(device: PretendedDevice, op: str, *args: Any) -> Any:
    """The binary itself, as with a real device: for its errors."""
    return getattr(_C, op)(*args, 0, 0, 1)


NATIVE = {"emulated": _emulated, "cpu": _on_the_cpu, "binary": _real}


def why_unavailable(native: str = "emulated") -> str:
    """Why the pretended device cannot be had here; empty when it can."""
    if torch.cuda.is_available():
        return "there is a GPU here"
    return emulated.why_unavailable() if native == "emulated" else ""


@contextmanager
def pretended_cuda(
    native: str = "emulated", *, launch_seconds: float = 0.0, kernel_seconds: float = 0.0
) -> Iterator[PretendedDevice]:
    """Pretend that ``DEVICE`` exists: move models and data there, and count.

    Args:
        native: what runs the native ops: ``"emulated"`` the CUDA code on the CPU, ``"cpu"`` the
            CPU's code (fast), ``"binary"`` the installed binary as on a GPU (for its errors).
        launch_seconds: seconds per kernel on the pretended host.
        kernel_seconds: seconds per kernel on the pretended device.

    Raises:
        RuntimeError: a real GPU is there, or the emulation is not.
    """
    reason = why_unavailable(native)
    if reason:
        raise RuntimeError(f"catapult_ext.testing.pretended: {reason}")
    device = PretendedDevice(NATIVE[native], launch_seconds, kernel_seconds)
    with ExitStack() as stack:
        for name, value in device.patches().items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        # torch.tensor(..., device=) then makes a tensor on the CPU and moves it, which is seen here
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(_native.pretended(device.call_native))
        stack.enter_context(device)
        yield device


def moved(value: Any) -> Any:
    """A module (in place), tensor or nest of tensors on the pretended device; not counted."""
    device = _present()
    before = Counter(device.waits), Counter(device.places), Counter(device.kernels)
    if isinstance(value, torch.nn.Module):
        _move_module(value)
        out = value
    else:
        out = tree_map(lambda t: t.to(DEVICE) if isinstance(t, Tensor) else t, value)
    device.waits, device.places, device.kernels = before
    return out


def _move_module(module: torch.nn.Module) -> None:
    """As ``module.to(DEVICE)`` on a GPU: shared parameters stay shared."""
    there: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, t in held.items():
                if t is not None and t not in there:
                    new = t.detach().to(DEVICE)
                    is_parameter = isinstance(t, torch.nn.Parameter)
                    there[t] = torch.nn.Parameter(new, t.requires_grad) if is_parameter else new
                if t is not None:
                    held[name] = there[t]  # type: ignore[assignment]


def _present() -> PretendedDevice:
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return next(m for m in modes if isinstance(m, PretendedDevice))
