"""What a frozen forward pass does about batch statistics, randomness and fused attention."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext.linops.model.dispatch_mode import DispatchMode
from catapult_ext.linops.model.memory_meter import Meter
from catapult_ext.linops.model.observed import Observed

BATCH_STATS = (None, "frozen", "coupled")
DROPOUT = (None, "fixed")
SHARED_STATE = threading.RLock()  # modules, generators: changed and restored by a frozen forward
_BATCH_NORM = "input running_mean running_var weight bias training momentum eps".split()  # noqa: SIM905


@dataclass(frozen=True)
class Policy:
    """Choices that would be wrong to make silently; None refuses the model.

    Attributes:
        batch_stats: for batch norms that use the statistics of the batch: ``"frozen"`` holds them
            as constants, ``"coupled"`` differentiates through them (samples depend on each other).
        dropout: ``"fixed"`` draws every random number of the forward pass once, from ``seed``.
        seed: of the fixed masks.
    """

    batch_stats: str | None = None
    dropout: str | None = None
    seed: int = 0

    def check(self, where: str) -> None:
        """Raise ValueError on an unknown choice."""
        text = f"batch_stats must be one of {BATCH_STATS}"
        v.require(self.batch_stats in BATCH_STATS, where, text, repr(self.batch_stats))
        v.require(
            self.dropout in DROPOUT, where, f"dropout must be one of {DROPOUT}", repr(self.dropout)
        )

    @contextmanager
    def seeded(self, device: torch.device) -> Iterator[None]:
        """Random numbers from ``seed`` inside, and the caller's generators as they were after."""
        if self.dropout is None:
            yield
            return
        with SHARED_STATE, torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            yield

    @contextmanager
    def applied(
        self,
        where: str,
        device: torch.device,
        *,
        refuse: bool = True,
        meter: Meter | None = None,
        observed: Observed | None = None,
    ) -> Iterator[None]:
        """The replacements and, with ``refuse``, the checks of this policy, around a forward.

        ``meter`` counts what the forward pass makes, ``observed`` takes notes on its operations.
        """
        with ExitStack() as stack:
            stack.enter_context(self.seeded(device))
            if self.batch_stats == "frozen":
                stack.enter_context(_ConstantStatistics())
            if refuse:
                stack.enter_context(_Refusals(where, self, meter, observed))
                if observed is not None:
                    stack.enter_context(observed.hooks())
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


class _Refusals(DispatchMode):
    """Refuses what would make products silently wrong: random ops, batch statistics."""

    def __init__(
        self, where: str, policy: Policy, meter: Meter | None, observed: Observed | None
    ) -> None:
        super().__init__()
        self.where, self._meter, self._observed = where, meter, observed
        self._random = policy.dropout is None
        self._statistics = policy.batch_stats is None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._random and torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(
                f"catapult_ext.{self.where}: the forward pass draws random numbers ({func}): "
                "call model.eval(), remove the active dropout or pass dropout='fixed'"
            )
        if self._statistics and "batch_norm" in func.name() and "backward" not in func.name():
            names = [a.name for a in func._schema.arguments]
            bound = dict(zip(names, args, strict=False)) | kwargs
            # one row is not coupled to another: InstanceNorm arrives here as a batch of one
            if bound.get("training", False) and bound["input"].shape[0] > 1:
                raise ValueError(
                    f"catapult_ext.{self.where}: a batch norm uses batch statistics ({func}), "
                    "which couples the samples: call model.eval() or pass batch_stats="
                )
        out = func(*args, **kwargs)
        if self._meter is not None:
            self._meter.take(out)
        if self._observed is not None:
            self._observed.take(func, args, out)
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


def _without_recomputation() -> list[tuple[Any, str, Any]]:
    """Parts of torch that would make products wrong, and what stands for them.

    Activation checkpointing would recompute with a later state; the fused weight norm has a wrong
    second derivative (torch 2.13).  Parametrised weights that are cached belong to other passes.
    """
    import torch.nn.utils.parametrize as parametrize
    import torch.utils.checkpoint as home

    def plain(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    class Direct:
        """Stands for the reentrant autograd Function: calls what it is given."""

        @staticmethod
        def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
            return function(*args)

    wanted: list[tuple[Any, str, Any]] = [
        (home, "_checkpoint_without_reentrant_generator", plain),
        (home, "CheckpointFunction", Direct),
        (torch, "_weight_norm", weight_norm),
        (torch, "embedding", _with_dense_gradient(torch.embedding, 4)),
        (torch, "embedding_bag", _with_dense_gradient(torch.embedding_bag, 5)),
        (sys.modules["torch.nn.utils.weight_norm"], "_weight_norm", weight_norm),
        (parametrize, "_cache_enabled", 0),
        (parametrize, "_cache", {}),
    ]
    return [change for change in wanted if hasattr(*change[:2])]


class _Replaced:
    """Settings of the process, made by the first pass to enter and undone by the last."""

    _lock = threading.Lock()
    _depth = 0
    _before: ClassVar[list[tuple[Any, str, Any]]] = []
    _fast = True

    def __enter__(self) -> None:
        cls = _Replaced
        with cls._lock:
            cls._depth += 1
            if cls._depth > 1:
                return
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


@contextmanager
def _other_generators() -> Iterator[None]:
    """The random numbers of Python and NumPy, as they were after."""
    numpy = sys.modules.get("numpy")
    state, others = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(others)


@contextmanager
def frozen_context() -> Iterator[None]:
    """Gradients on and autocast off in any caller's mode; kernels that have derivatives."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    grad = (torch.inference_mode(False), torch.enable_grad())
    rest = (_Replaced(), no_autocast(), _other_generators())
    with grad[0], grad[1], sdpa_kernel(SDPBackend.MATH), rest[0], rest[1], rest[2]:
        yield


def check_modules(model: object, where: str, policy: Policy) -> nn.Module:
    """Refuse non-modules, train-mode batch norm, active dropout and uninitialised parameters."""
    if not isinstance(model, nn.Module):
        v.fail(where, "model must be a torch.nn.Module", type(model).__name__, TypeError)
    for name, module in model.named_modules():
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        own_statistics = batch_norm and (module.training or module.running_mean is None)
        v.require(
            not own_statistics or policy.batch_stats is not None,
            where,
            "BatchNorm must be in eval mode with running statistics (call model.eval() or pass "
            "batch_stats='frozen' or 'coupled')",
            f"{type(module).__name__} '{name}' using batch statistics",
        )
        dropout = isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU))
        active = dropout and module.training and getattr(module, "p", 1.0) > 0
        v.require(
            not active or policy.dropout is not None,
            where,
            "dropout must be off (call model.eval() or pass dropout='fixed' for one fixed mask)",
            f"{type(module).__name__} '{name}' in train mode",
        )
    for name, p in model.named_parameters():
        lazy = isinstance(p, nn.parameter.UninitializedParameter)
        v.require(not lazy, where, "parameters must be initialised (run a forward pass)", name)
    return model


def check_repeats(first: Tensor, again: Tensor, where: str) -> None:
    """Two forward passes must agree as curvlinops asks: 5e-5 relative, 1e-6 of the largest."""
    bound = 5e-5 * first.abs() + 1e-6 * first.abs().max()
    same = first.shape == again.shape and bool(((first - again).abs() <= bound).all())
    v.require(
        same,
        where,
        "two forward passes must give the same outputs (does forward() change its own state?)",
        f"a difference of {(first - again).abs().max():.1e}"
        if first.shape == again.shape
        else f"shapes {tuple(first.shape)} and {tuple(again.shape)}",
    )
