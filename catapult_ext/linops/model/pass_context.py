"""The context of a forward pass: what it refuses, replaces and leaves as it was."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from catapult_ext._autocast import no_autocast
from catapult_ext.linops.model.dispatch_mode import DispatchMode
from catapult_ext.linops.model.fixed_model import Choices

Note = Callable[[Any, Any, Any], None]  # an operation, its arguments and its result
_BATCH_NORM = "input running_mean running_var weight bias training momentum eps".split()  # noqa: SIM905


@contextmanager
def policed(
    policy: Choices,
    where: str,
    device: torch.device,
    *,
    refuse: bool = True,
    notes: Sequence[Note] = (),
) -> Iterator[None]:
    """A frozen context with the replacements and, with ``refuse``, the checks of ``policy``.

    Args:
        policy: the choices.
        where: the public function named in errors.
        device: device of the parameters.
        refuse: raise ValueError on random operations and batch statistics that the policy lacks.
        notes: called with every operation, its arguments and its result; with ``refuse`` alone.
    """
    with frozen_context(), ExitStack() as stack:
        stack.enter_context(policy.seeded(device))
        if policy.batch_stats == "frozen":
            stack.enter_context(_ConstantStatistics())
        if refuse:
            stack.enter_context(_Refusals(where, policy, notes))
        yield


class _ConstantStatistics(TorchFunctionMode):
    """Batch norms normalise by the statistics of their batch, held constant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        bound = dict(zip(_BATCH_NORM, args, strict=False)) | kwargs
        if bound.get("training", False):
            x = bound["input"].detach()
            rest = [i for i in range(x.dim()) if i != 1]
            bound["running_mean"] = x.mean(rest)
            bound["running_var"] = x.var(rest, unbiased=False)
            bound["training"] = False
        return func(**bound)


@cache
def _refusable(func: Any) -> tuple[bool, bool]:
    """Whether an operation may draw random numbers, and whether it is a batch norm."""
    random = torch.Tag.nondeterministic_seeded in func.tags
    return random, "batch_norm" in func.name() and "backward" not in func.name()


# operations that draw numbers in training alone: the argument that says so, and its default
_IN_TRAINING = {
    torch.ops.aten.rrelu_with_noise.default: ("training", False),
    torch.ops.aten.rrelu_with_noise_.default: ("training", False),
    torch.ops.aten.rrelu_with_noise_functional.default: ("training", False),
    torch.ops.aten.native_dropout.default: ("train", True),
}


def draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether this call of an operation draws random numbers that its result depends on."""
    if not _refusable(func)[0]:
        return False
    if func not in _IN_TRAINING:
        return True
    name, default = _IN_TRAINING[func]
    bound = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    active = bound.get(name, default)
    return (active is None or bool(active)) and bound.get("p", 1) > 0


class _Refusals(DispatchMode):
    """Refuses what would make products silently wrong: random ops, batch statistics."""

    def __init__(self, where: str, policy: Choices, notes: Sequence[Note]) -> None:
        super().__init__()
        self.where, self._notes = where, notes
        self._random = policy.dropout is None
        self._statistics = policy.batch_stats is None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        random, batch_norm = _refusable(func)
        if random and self._random and draws(func, args, kwargs):
            way = (  # which a model may seed itself: its numbers are then those of every pass
                "pass dropout='fixed', which holds the draws of its generator"
                if isinstance(kwargs.get("generator"), torch.Generator)
                else "call model.eval(), remove the active dropout or pass dropout='fixed'"
            )
            raise ValueError(
                f"catapult_ext.{self.where}: the forward pass draws random numbers ({func}): {way}"
            )
        if batch_norm and self._statistics:
            names = [a.name for a in func._schema.arguments]
            bound = dict(zip(names, args, strict=False)) | kwargs
            # one row is not coupled to another: InstanceNorm arrives here as a batch of one
            if bound.get("training", False) and bound["input"].shape[0] > 1:
                raise ValueError(
                    f"catapult_ext.{self.where}: a batch norm uses batch statistics ({func}), "
                    "which couples the samples: call model.eval() or pass batch_stats="
                )
        out = func(*args, **kwargs)
        for note in self._notes:
            note(func, args, out)
        return out


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``torch._weight_norm`` composed of operations that have all their derivatives."""
    rest = [i for i in range(v.dim()) if i != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=rest, keepdim=True))


def _with_dense_gradient(function: Any, position: int) -> Any:
    """An embedding whose argument ``sparse``, at ``position``, is off.

    Sparse gradients have no second derivative, and the values are the same.
    """

    def dense(*args: Any, **kwargs: Any) -> Any:
        before, after = args[:position], args[position + 1 :]
        if "sparse" in kwargs:
            kwargs["sparse"] = False
        return function(*before, *([False] if len(args) > position else []), *after, **kwargs)

    return dense


def _branch(pred: Any, true_fn: Any, false_fn: Any, operands: Any = ()) -> Any:
    """``torch.cond`` where the condition is known, as in every pass here."""
    return (true_fn if bool(pred) else false_fn)(*operands)


def _plain_generator(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Stands for the context of a checkpoint: changes nothing."""
    yield


class _Direct:
    """Stands for the reentrant autograd Function: calls the function that it is given."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _without_recomputation() -> list[tuple[Any, str, Any]]:
    """Parts of torch that would make products wrong, and what stands for them.

    Activation checkpointing would recompute with a later state; the fused weight norm has a wrong
    second derivative (torch 2.13).  Parametrised weights that are cached belong to other passes.
    Attention kernels that a model chooses itself have no second derivative.
    """
    import torch.nn.attention as attention
    import torch.nn.utils.parametrize as parametrize
    import torch.utils.checkpoint as home

    wanted: list[tuple[Any, str, Any]] = [
        (home, "_checkpoint_without_reentrant_generator", _plain_generator),
        (home, "CheckpointFunction", _Direct),
        (attention, "_sdpa_kernel", lambda *backends, **options: None),
        (torch, "cond", _branch),
        (torch, "_weight_norm", weight_norm),
        (torch, "embedding", _with_dense_gradient(torch.embedding, 4)),
        (torch, "embedding_bag", _with_dense_gradient(torch.embedding_bag, 5)),
        (sys.modules["torch.nn.utils.weight_norm"], "_weight_norm", weight_norm),
        (parametrize, "_cache_enabled", 0),
        (parametrize, "_cache", {}),
    ]
    return [change for change in wanted if hasattr(*change[:2])]


class _Replaced:
    """Settings of the process, made by the first pass to enter, restored by the last."""

    _lock = threading.Lock()
    _depth = 0
    _before: ClassVar[list[tuple[Any, str, Any]]] = []
    _fast = True
    _attention: ClassVar[AbstractContextManager[Any]] = nullcontext()

    def __enter__(self) -> None:
        cls = _Replaced
        with cls._lock:
            cls._depth += 1
            if cls._depth > 1:
                return
            from torch.nn.attention import SDPBackend, sdpa_kernel

            cls._attention = sdpa_kernel(SDPBackend.MATH)
            cls._attention.__enter__()
            wanted = _without_recomputation()
            cls._before = [(place, name, getattr(place, name)) for place, name, _ in wanted]
            for place, name, value in wanted:
                setattr(place, name, value)
            cls._fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *error: object) -> None:
        cls = _Replaced
        with cls._lock:
            cls._depth -= 1
            if cls._depth:
                return
            for place, name, value in cls._before:
                setattr(place, name, value)
            torch.backends.mha.set_fastpath_enabled(cls._fast)
            cls._attention.__exit__(None, None, None)


@contextmanager
def frozen_context() -> Iterator[None]:
    """Gradients on and autocast off in any caller's mode; kernels that have derivatives."""
    with torch.inference_mode(False), torch.enable_grad(), _Replaced(), no_autocast():
        yield
