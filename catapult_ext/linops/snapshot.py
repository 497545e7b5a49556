"""A model held still: copies of its parameters, buffers and inputs, and its checked forward pass.

The model itself is never touched: no gradients, hooks, buffers or modes change, and training it
afterwards does not change an operator built before.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from catapult_ext import _validate as v

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


class _PolicyMode(TorchDispatchMode):
    """Refuses what would make products silently wrong: random ops, batch statistics."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True makes torch import its compiler, seconds, on the first forward pass

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(
                f"catapult_ext.{self.where}: the forward pass draws random numbers ({func}): "
                "call model.eval() or remove the active dropout"
            )
        if "batch_norm" in func.name() and "backward" not in func.name():
            names = [a.name for a in func._schema.arguments]
            bound = dict(zip(names, args, strict=False)) | kwargs
            # one row is not coupled to another: InstanceNorm arrives here as a batch of one
            if bound.get("training", False) and bound["input"].shape[0] > 1:
                raise ValueError(
                    f"catapult_ext.{self.where}: a batch norm uses batch statistics ({func}), "
                    "which couples the samples: call model.eval()"
                )
        return func(*args, **kwargs)


@contextmanager
def _frozen_context() -> Any:
    """Gradients on in any caller's mode; attention by the math kernel, which has derivatives."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def check_modules(model: object, where: str) -> nn.Module:
    """Refuse non-modules, train-mode batch norm, active dropout and uninitialised parameters."""
    if not isinstance(model, nn.Module):
        v.fail(where, "model must be a torch.nn.Module", type(model).__name__, TypeError)
    assert isinstance(model, nn.Module)
    for name, module in model.named_modules():
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        own_statistics = batch_norm and (module.training or module.running_mean is None)
        v.require(
            not own_statistics,
            where,
            "BatchNorm must be in eval mode with running statistics (call model.eval())",
            f"{type(module).__name__} '{name}' using batch statistics",
        )
        dropout = isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU))
        active = dropout and module.training and getattr(module, "p", 1.0) > 0
        v.require(
            not active,
            where,
            "dropout must be off (call model.eval())",
            f"{type(module).__name__} '{name}' in train mode",
        )
    for name, p in model.named_parameters():
        lazy = isinstance(p, nn.parameter.UninitializedParameter)
        v.require(not lazy, where, "parameters must be initialised (run a forward pass)", name)
    return model


def _copy(value: Any, where: str, device: torch.device) -> Any:
    """Detached copies of all tensors in a nested input, checked finite and on ``device``."""
    if isinstance(value, Tensor):
        v.require(
            value.device == device, where, f"inputs must be on the model's {device}", value.device
        )
        v.require(value.numel() > 0, where, "inputs must not be empty", tuple(value.shape))
        finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
        v.require(finite, where, "inputs must be finite", "NaN or inf")
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {k: _copy(a, where, device) for k, a in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_copy(a, where, device) for a in value)
    return value


class Snapshot:
    """A module at fixed parameters and inputs.

    Args:
        model: any module; its trainable floating-point parameters (``requires_grad``) of one dtype
            (float32 or float64) are the P parameters, in ``named_parameters`` order; tied ones
            count once.  Frozen and integer parameters and all buffers are constants.
        x: a tensor, or a tuple (positional) or mapping (keyword arguments) of inputs.
        where: the public function named in errors.

    Raises:
        TypeError: not a module, parameters of another or of mixed dtype, outputs of another dtype.
        ValueError: batch statistics, active dropout, any random op, non-finite or empty inputs,
            no trainable parameter, outputs that are not (N, O) or (N,) or depend on no parameter.
    """

    def __init__(self, model: nn.Module, x: Inputs, where: str) -> None:
        self.where = where
        # a compiled module has the same parameters, and traces badly under the modes used here
        self.model = check_modules(getattr(model, "_orig_mod", model), where)
        with torch.inference_mode(False):
            self.params: dict[str, Tensor] = {}
            self.constants: dict[str, Tensor] = {}
            for name, p in self.model.named_parameters():
                copy = p.detach().clone()
                if p.requires_grad:
                    self.params[name] = copy.requires_grad_()
                else:
                    self.constants[name] = copy
            for name, b in self.model.named_buffers():
                self.constants[name] = b.detach().clone()
            v.require(bool(self.params), where, "model must have trainable parameters", "none")
            first = next(iter(self.params.values()))
            self.dtype, self.device = first.dtype, first.device
            self._check_parameters()
            self.x = _copy(x, where, self.device)
        self.names = tuple(self.params)
        self.shapes = tuple(p.shape for p in self.params.values())
        self.sizes = tuple(p.numel() for p in self.params.values())
        self.n_params = sum(self.sizes)
        self._raw: Any = None
        self.coarse = False  # forward passes in bfloat16 (autocast)
        self.vector_outputs = False  # set by the forward pass: outputs (N,) shown as (N, 1)

    def _check_parameters(self) -> None:
        for name, p in self.params.items():
            if p.dtype not in v.FLOAT_DTYPES or p.dtype != self.dtype:
                v.fail(
                    self.where,
                    "trainable parameters must all be float32 or all float64",
                    f"{name} with {p.dtype}",
                    TypeError,
                )
            v.require(
                p.device == self.device,
                self.where,
                f"parameters must be on one device ({self.device})",
                f"{name} on {p.device}",
            )

    def call(self, params: Mapping[str, Tensor]) -> Tensor:
        """Raw outputs at ``params``; constants and inputs as frozen."""
        state = {**self.constants, **params}
        if isinstance(self.x, Mapping):
            return torch.func.functional_call(self.model, state, (), dict(self.x))
        args = self.x if isinstance(self.x, tuple) else (self.x,)
        return torch.func.functional_call(self.model, state, args)

    def outputs(
        self, params: Mapping[str, Tensor], tracer: AbstractContextManager[Any] | None = None
    ) -> Tensor:
        """Outputs as (N, O); a model with outputs (N,) has O = 1."""
        low: AbstractContextManager[Any] = nullcontext()
        if self.coarse:
            low = torch.autocast(self.device.type, dtype=torch.bfloat16)
        with tracer or nullcontext(), low:
            out = self.call(params)
        if self.coarse and isinstance(out, Tensor):
            out = out.to(self.dtype)
        self._raw = out if tracer else None
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
        with _frozen_context():
            # fresh constants: a module that writes its buffers must not change the next forward
            kept = self.constants
            self.constants = {k: c.clone() for k, c in kept.items()}
            try:
                with _PolicyMode(self.where):
                    out = self.outputs(self.params, tracer)
            finally:
                self.constants = kept
        v.require(
            bool(torch.isfinite(out).all()),
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
