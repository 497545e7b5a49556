"""A model held still: copies of its parameters, buffers and inputs, and its checked forward pass.

The model itself is never touched: no gradients, hooks, buffers or modes change, and training it
afterwards does not change an operator built before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from catapult_ext import _validate as v
from catapult_ext.linops.model.channels_last import prefer_channels_last
from catapult_ext.linops.model.memory_meter import Meter, OverBudget
from catapult_ext.linops.model.observed import Observed
from catapult_ext.linops.model.policy import (
    SHARED_STATE,
    Policy,
    check_modules,
    check_repeats,
    frozen_context,
)

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


HALF = (torch.bfloat16, torch.float16)
LIMITS = (OverBudget, torch.OutOfMemoryError)  # of memory, not of what the model accepts
Hook = Callable[[nn.Module, Any], Tensor]


class _Hooked(nn.Module):
    """A model whose outputs are what ``forward(model, inputs)`` makes of it."""

    def __init__(self, model: nn.Module, forward: Hook) -> None:
        super().__init__()
        self.model, self.hook = model, forward
        self.training = model.training  # train() would reach into the user's modules

    def forward(self, x: Any) -> Any:
        return self.hook(self.model, x)


def _wide(value: Tensor) -> Tensor:
    """Half precision is frozen in float32: every product and sum accumulates there."""
    return value.float() if value.dtype in HALF else value


def _finite(value: Tensor) -> bool:
    """No NaN or inf: a finite sum proves it in one pass, an infinite one may be an overflow."""
    if not value.is_floating_point():
        return True
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def _copy(value: Any, where: str, device: torch.device) -> Any:
    """Detached copies of all tensors in a nested input, checked finite and on ``device``."""
    if isinstance(value, Tensor):
        v.require(
            value.device == device, where, f"inputs must be on the model's {device}", value.device
        )
        v.dense(where, "inputs", value)
        v.constant(where, {"inputs": value})
        v.require(value.numel() > 0, where, "inputs must not be empty", tuple(value.shape))
        v.require(_finite(value), where, "inputs must be finite", "NaN or inf")
        return _wide(value.detach().clone())
    if isinstance(value, Mapping):
        return {k: _copy(a, where, device) for k, a in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_copy(a, where, device) for a in value)
    return value


def _selected(names: list[str], params: str | Sequence[str] | None, where: str) -> list[str]:
    """Names that match a pattern of ``params``; every pattern must match one."""
    if params is None:
        return names
    if not isinstance(params, Sequence):
        v.fail(where, "params must be a name or a list of names", type(params).__name__, TypeError)
    patterns = [params] if isinstance(params, str) else list(params)
    for pattern in patterns:
        matches = isinstance(pattern, str) and any(fnmatchcase(n, pattern) for n in names)
        v.require(
            matches,
            where,
            f"params must be names or patterns of trainable parameters ({', '.join(names[:8])}"
            f"{', ...' if len(names) > 8 else ''})",
            repr(pattern),
        )
    return [n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns)]


class Snapshot:
    """A module at fixed parameters and inputs.

    Args:
        model: any module; its trainable floating-point parameters (``requires_grad``) are the P
            parameters, in ``named_parameters`` order; tied ones count once.  Frozen and integer
            parameters and all buffers are constants.  Half-precision models are held in float32.
        x: a tensor, or a tuple (positional) or mapping (keyword arguments) of inputs.
        where: the public function named in errors.
        params: names or patterns (``fnmatch``) of the parameters to take; None takes all.
        forward: ``forward(model, x)`` returns the outputs (N, O); None calls the model.
        policy: see :class:`~catapult_ext.linops.model.policy.Policy`.

    Raises:
        TypeError: not a module, parameters of another or of mixed dtype, outputs of another dtype.
        ValueError: batch statistics, active dropout, any random op (unless the policy allows them),
            non-finite or empty inputs, no trainable parameter, outputs that are not (N, O) or (N,),
            depend on no parameter, or differ between two forward passes.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Inputs,
        where: str,
        *,
        params: str | Sequence[str] | None = None,
        forward: Hook | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.where = where
        inside = torch._C._functorch.peek_interpreter_stack() is not None
        needs = "must be built outside torch.func transforms (it is not differentiable)"
        v.require(not inside, where, needs, "a call inside one")
        self.policy = policy or Policy()
        self.policy.check(where)
        # a compiled module has the same parameters, and traces badly under the modes used here
        self.model = check_modules(getattr(model, "_orig_mod", model), where, self.policy)
        self._prefix = ""
        with torch.inference_mode(False):
            self._take_state(params)
            self.x = _copy(x, where, self.device)
        if forward is not None:
            v.require(callable(forward), where, "forward must be a function (model, x)", forward)
            self.model, self._prefix = _Hooked(self.model, forward), "model."
        self.names = tuple(self.params)
        self.shapes = tuple(p.shape for p in self.params.values())
        self.sizes = tuple(p.numel() for p in self.params.values())
        self.n_params = sum(self.sizes)
        self._raw: Any = None
        self._ran = False  # set by the first forward pass that succeeds
        self.meter: Meter | None = None  # counts forward passes, and stops one that grows too large
        self.coarse = False  # forward passes in bfloat16 (autocast)
        # by (route, ``coarse``): why products by that route are wrong, "" where they are right
        self.proofs: dict[tuple[str, bool], str] = {}
        self.observed = Observed(self.dtype)  # of the last forward pass with graph
        self.vector_outputs = False  # set by the forward pass: outputs (N,) shown as (N, 1)
        if self.device.type == "cpu" and any(len(s) == 4 for s in self.shapes):
            prefer_channels_last(self)

    def _take_state(self, params: str | Sequence[str] | None) -> None:
        self.params: dict[str, Tensor] = {}
        self.constants: dict[str, Tensor] = {}
        own = dict(self.model.named_parameters())
        trainable = [name for name, p in own.items() if p.requires_grad]
        v.require(bool(trainable), self.where, "model must have trainable parameters", "none")
        chosen = set(_selected(trainable, params, self.where))
        v.constant(self.where, own)
        for name, p in own.items():
            snapshot = _wide(p.detach().clone())
            if name in chosen:
                self.params[name] = snapshot.requires_grad_()
            else:
                self.constants[name] = snapshot
        for name, b in self.model.named_buffers():
            self.constants[name] = _wide(b.detach().clone())
        first = next(iter(self.params.values()))
        self.dtype, self.device = first.dtype, first.device
        self._check_parameters()

    def _check_parameters(self) -> None:
        for name, p in self.params.items():
            if p.dtype not in v.FLOAT_DTYPES or p.dtype != self.dtype:
                v.fail(
                    self.where,
                    "trainable parameters must all be float32 (or half precision) or all float64",
                    f"{name} with {p.dtype}",
                    TypeError,
                )
            v.require(
                p.device == self.device,
                self.where,
                f"parameters must be on one device ({self.device})",
                f"{name} on {p.device}",
            )

    def call(self, params: Mapping[str, Tensor]) -> Any:
        """Raw outputs at ``params``; constants and inputs as frozen."""
        # fresh constants: a module that writes its buffers must not change the next forward
        fresh = {name: c.clone() for name, c in self.constants.items()}
        state = {self._prefix + name: t for name, t in {**fresh, **params}.items()}
        args, kwargs = self.x if isinstance(self.x, tuple) else (self.x,), {}
        if self._prefix:
            args = (self.x,)
        elif isinstance(self.x, Mapping):
            args, kwargs = (), dict(self.x)
        with SHARED_STATE:  # functional_call swaps the parameters of modules that threads may share
            return torch.func.functional_call(self.model, state, args, kwargs)

    def _called(self, params: Mapping[str, Tensor]) -> Any:
        """:meth:`call`, whose first failure names the operator and what the model was given."""
        if self._ran:
            return self.call(params)
        try:
            out = self.call(params)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            if str(error).startswith("catapult_ext.") or isinstance(error, LIMITS):
                raise
            given = self.x if isinstance(self.x, (tuple, list)) else (self.x,)
            shown = ", ".join(
                f"{tuple(t.shape)} {t.dtype}" if isinstance(t, Tensor) else type(t).__name__
                for t in given
            )
            kind = (
                TypeError if isinstance(error, TypeError) or "dtype" in str(error) else ValueError
            )
            raise kind(
                f"catapult_ext.{self.where}: the model (parameters {self.dtype}) must accept the "
                f"inputs, got {shown}, on which its forward pass fails: {error}"
            ) from error
        self._ran = True
        return out

    def outputs(
        self, params: Mapping[str, Tensor], tracer: AbstractContextManager[Any] | None = None
    ) -> Tensor:
        """Outputs as (N, O); a model with outputs (N,) has O = 1."""
        low: AbstractContextManager[Any] = nullcontext()
        if self.coarse:
            # the cache would hand a cast made without a graph to a pass that needs one
            low = torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        with tracer or nullcontext(), low:
            out = self._called(params)
        self._raw = out if tracer else None
        if isinstance(out, Tensor) and out.dtype in HALF:
            out = out.to(self.dtype)
        if not isinstance(out, Tensor):
            v.fail(
                self.where, "model output must be a tensor (N, O)", type(out).__name__, TypeError
            )
        fits = out.dim() in (1, 2) and out.numel() > 0
        v.require(fits, self.where, "model output must be 2-D (N, O) or 1-D (N,)", tuple(out.shape))
        if out.dtype != self.dtype:
            v.fail(
                self.where,
                f"model output must have the parameters' dtype {self.dtype}",
                out.dtype,
                TypeError,
            )
        self.vector_outputs = out.dim() == 1
        return out.unsqueeze(1) if out.dim() == 1 else out

    def forward(self, tracer: AbstractContextManager[Any] | None = None) -> Tensor:
        """One policed forward pass with graph; outputs (N, O), finite, depending on parameters."""
        observed = Observed(self.dtype)
        applied = self.policy.applied(self.where, self.device, meter=self.meter, observed=observed)
        with frozen_context(), applied:
            out = self.outputs(self.params, tracer)
        self.observed = observed
        v.require(
            _finite(out.detach()),
            self.where,
            "model outputs must be finite",
            "NaN or inf",
        )
        v.require(
            out.requires_grad,
            self.where,
            "model outputs must depend on a trainable parameter",
            "outputs without a graph (is there a torch.no_grad() or detach() in forward?)",
        )
        return out

    def check_repeats(self, outputs: Tensor) -> None:
        """Raise ValueError unless a second forward pass gives ``outputs`` again."""
        with frozen_context(), self.policy.applied(self.where, self.device), torch.no_grad():
            check_repeats(outputs.detach(), self.outputs(self.params), self.where)

    @property
    def n_samples(self) -> int:
        """N by the inputs: the leading size of the first tensor among them."""
        sizes = (t.shape[0] for t in tree_leaves(self.x) if isinstance(t, Tensor) and t.dim())
        return next(sizes, 1)

    def part(self, samples: slice) -> Snapshot:
        """The same model on some of the samples; parameters and constants are shared."""
        n = self.n_samples

        def cut(value: Any) -> Any:
            sampled = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == n
            return value[samples] if sampled else value

        part = copy.copy(self)
        part.x = tree_map(cut, self.x)
        return part

    def plain_outputs(self, samples: slice) -> Tensor:
        """Outputs of some of the samples without a graph, checked to be of them alone."""
        part = self.part(samples)
        with frozen_context(), self.policy.applied(self.where, self.device), torch.no_grad():
            out = part.outputs(part.params)
        self.vector_outputs = part.vector_outputs
        count = samples.stop - samples.start
        rows = f"{count} inputs must give {count} rows of outputs to be taken in chunks"
        v.require(out.shape[0] == count, self.where, rows, tuple(out.shape))
        return out

    def tensors(self) -> list[Tensor]:
        """Everything held: parameters, constants and inputs."""
        inputs = [t for t in tree_leaves(self.x) if isinstance(t, Tensor)]
        return [*self.params.values(), *self.constants.values(), *inputs]

    @property
    def bytes(self) -> int:
        """Of :meth:`tensors`."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    @property
    def itemsize(self) -> int:
        """Bytes of one number of the operator's dtype."""
        return next(iter(self.params.values())).element_size()

    def take_raw_output(self) -> Any:
        """What the model returned in the last traced forward pass; handed out once."""
        out, self._raw = self._raw, None
        return out

    def split(self, vector: Tensor) -> list[Tensor]:
        """A flat (P,) vector as views of the parameters' shapes."""
        return [a.view(s) for a, s in zip(vector.split(self.sizes), self.shapes, strict=True)]

    def join(self, grads: list[Tensor | None] | tuple[Tensor | None, ...]) -> Tensor:
        """Per-parameter tensors as one flat (P,) vector; None (an unused parameter) is zero."""
        blocks = [
            p.new_zeros(p.numel()) if g is None else g.reshape(-1)
            for g, p in zip(grads, self.params.values(), strict=True)
        ]
        return torch.cat([b.detach() for b in blocks])

    def columns(self, count: int, column: Callable[[int], Any]) -> Tensor:
        """(P, count) whose column k joins the per-parameter tensors ``column(k)``."""
        if count == 1:  # no second copy of what may be the largest tensor of all
            return self.join(column(0)).unsqueeze(1)
        out = torch.empty(count, self.n_params, dtype=self.dtype, device=self.device)
        for k in range(count):
            out[k] = self.join(column(k))
        return out.T


def require_second_derivatives(grads: list[Tensor], where: str) -> None:
    """Refuse gradient graphs that pass a backward marked ``once_differentiable``.

    torch marks its result with a node that raises, but off the path to the parameters, so that a
    second backward towards them would leave the term out silently.
    """
    seen: set[Any] = set()
    stack: list[Any] = [g.grad_fn for g in grads if g.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise RuntimeError(
                f"catapult_ext.{where}: an operation of the model has no second derivative: its "
                "backward is marked once_differentiable"
            )
        stack.extend(n for n, _ in node.next_functions if n is not None)
