"""Changes of the parameters in one optimizer step, seen by hooks, for any optimizer class."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from catapult_ext.probes.step_metric import as_real

_PIECE = 1 << 15  # entries whose products are added in the tensors' own dtype
_FRAMES = 16  # callers of an optimizer's step among which a GradScaler is looked for


class StepWatch:
    """Displacement and gradient of the optimizer's steps, from the hooks that torch offers.

    The gradient is the loss's own.  Where something changed it in place between the backward pass
    and the step (clipping, ``GradScaler.unscale_``), a copy made during the backward pass is used.
    Copies are made at the first step and, once a change was seen, at every step; otherwise one hook
    a backward pass notes the versions of all gradients.

    Attributes:
        measuring: whether the next step is to be measured; otherwise the hooks only count.
        steps: optimizer steps since :meth:`clear`.
        displacement: theta - theta_+ of the step, a tensor for each parameter.
        products: (2,) float64, g.(theta - theta_+) and |theta - theta_+|^2; None if not measured.
        rates: each group's learning rate at the step.
        flags: why the step has no measurement.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.measuring = True
        self.steps = 0
        self.flags: list[str] = []
        self.rates: list[float] = []
        self.parameters: list[Tensor] = []
        self.displacement: list[Tensor] = []
        self.products: Tensor | None = None
        self._gradients: list[Tensor] = []
        self.versions = 0  # of all parameters after the last step
        self._buffers = _Displacement()
        self._seen: list[tuple[Tensor, Tensor, int]] = []  # parameters, gradients, their versions
        self._copies: dict[Tensor, Tensor] = {}
        self._copying = True
        self._held: dict[Tensor, Tensor] | None = None
        self._closure = False
        self._hooks: list[Any] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        self._gradient_hooks: list[Any] = []
        self._hook_gradients()

    def close(self) -> None:
        """Take the hooks away and drop all copies."""
        for hook in (*self._hooks, *self._gradient_hooks):
            hook.remove()
        self._hooks, self._gradient_hooks = [], []
        self._seen, self._copies, self._held = [], {}, None
        self.displacement, self._gradients = [], []
        self._buffers = _Displacement()

    def clear(self, *, measuring: bool) -> None:
        """Forget the step; say whether the next one is measured."""
        self.measuring, self.steps = measuring, 0
        self.flags, self.products = [], None
        self._seen, self._held = [], None

    def state_dict(self) -> dict[str, Any]:
        """Whether gradients are copied; nothing else lasts from step to step."""
        return {"copying": self._copying}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it; the parameters are taken as they are now."""
        self._copying, self._copies, self.versions = state["copying"], {}, 0
        self.parameters = self._trained()
        self._hook_gradients()

    def hold_gradient(self) -> None:
        """Copy the gradients as they are: the loss's own, at the present parameters."""
        if self.measuring:
            present = (p for g in self.optimizer.param_groups for p in g["params"])
            self._held = {p: p.grad.detach().clone() for p in present if p.grad is not None}

    def _hook_gradients(self) -> None:
        """One hook for each gradient while copies are made, otherwise one alone."""
        for hook in self._gradient_hooks:
            hook.remove()
        groups = self.optimizer.param_groups
        leaves = [p for g in groups for p in g["params"] if p.is_leaf and p.requires_grad]
        made = [p.register_post_accumulate_grad_hook(self._begun) for p in leaves[-1:]]
        if self._copying:
            made += [p.register_post_accumulate_grad_hook(self._copied) for p in leaves]
        self._gradient_hooks = made

    def _copied(self, p: Tensor) -> None:
        if self.measuring and p.grad is not None:
            self._copies[p] = p.grad.detach().clone()

    def _begun(self, _p: Tensor) -> None:
        if self.measuring:
            torch.autograd.Variable._execution_engine.queue_callback(self._ended)

    def _ended(self) -> None:
        """At the end of a backward pass: all gradients, as the loss has made them."""
        self._seen = [(p, p.grad, p.grad._version) for p in self._trained() if p.grad is not None]

    def _trained(self) -> list[Tensor]:
        return [p for g in self.optimizer.param_groups for p in g["params"] if p.requires_grad]

    @torch.no_grad()
    def _before(self, _optimizer: Any, given: Any, named: Any) -> None:
        if not self.measuring or self.steps:
            return
        groups = self.optimizer.param_groups
        self.rates = [float(g["lr"]) if "lr" in g else float("nan") for g in groups]
        self.parameters = self._trained()
        # an optimizer's arguments begin with itself
        closure = given[1] if len(given) > 1 else named.get("closure")
        self._closure = closure is not None
        if self.versions and self.versions != self._version():
            self.flags.append("parameters changed between steps")
        self.displacement = self._buffers.begin(self.parameters)
        if not self._closure:
            self._gradients = self._loss_gradients()

    def _loss_gradients(self) -> list[Tensor]:
        """The loss's own gradients; empty where they are not known, with a flag."""
        held = self._held
        if held is not None:
            return self._all([held.get(p) for p in self.parameters])
        if any(p.grad is None for p in self.parameters):
            return self._all([p.grad for p in self.parameters])
        scale = getattr(self.optimizer, "grad_scale", None)
        if scale is not None:  # a fused step, which unscales in its kernel
            size = float(scale)
            grads = [None if p.grad is None else p.grad / size for p in self.parameters]
            return self._all(grads)
        # without a note of its backward pass, whose gradient it is is not known
        same = len(self._seen) == len(self.parameters) and all(
            p.grad is seen and seen._version == version for p, seen, version in self._seen
        )
        if same:
            if self._copying:
                self._copying, self._copies = False, {}
                self._hook_gradients()
            return self._all([p.grad for p in self.parameters])
        if not self._copying:
            self._copying = True
            self._hook_gradients()
            self.flags.append(
                "gradient changed after the backward pass (copies are kept from now on)"
            )
            return []
        size = _loss_scale()
        return self._all([self._copy(p, size) for p in self.parameters])

    def _copy(self, p: Tensor, scale: float) -> Tensor | None:
        found = self._copies.get(p)
        return p.grad if found is None else found / scale if scale != 1 else found

    def _all(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        missing = sum(g is None for g in gradients)
        if missing:
            self.flags.append(f"no gradient of {missing} parameters")
            return []
        return [g.detach() for g in gradients if g is not None]

    @torch.no_grad()
    def _after(self, _optimizer: Any, _given: Any, _named: Any) -> None:
        self.steps += 1
        if self.steps > 1 or not self.measuring:
            self.versions = self._version()
            return
        if self._closure and self._held is not None:
            self._gradients = self._loss_gradients()
        elif self._closure:
            self.flags.append("closure (call hold_gradient() at its end)")
        self._buffers.end(self.parameters)
        self.versions = self._version()
        if self._gradients:  # at once, as the loop may set gradients to zero in place
            self.products = self._buffers.products(self._gradients)
        self._gradients = []

    def _version(self) -> int:
        return sum(p._version for p in self.parameters)


class _Displacement:
    """theta - theta_+, kept as pieces of one buffer where parameters are alike.

    Attributes:
        pieces: a tensor for each parameter.
    """

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []
        self._key: list[Any] = []
        self._flat: Tensor | None = None

    def begin(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Copy theta; returns the pieces."""
        key = [(id(p), p.dtype, p.shape) for p in parameters]
        if key != self._key:
            self._key = key
            self._make(parameters)
        torch._foreach_copy_(self.pieces, list(parameters))
        return self.pieces

    def _make(self, parameters: Sequence[Tensor]) -> None:
        kinds = {(p.dtype, p.device) for p in parameters}
        self._flat, self.pieces = None, [torch.empty_like(p) for p in parameters]
        wide = all(dtype in (torch.float32, torch.float64) for dtype, _ in kinds)
        if len(kinds) == 1 and wide and all(p.is_contiguous() for p in parameters):
            sizes = [p.numel() for p in parameters]
            self._flat = parameters[0].new_empty(sum(sizes))
            pieces = zip(self._flat.split(sizes), parameters, strict=True)
            self.pieces = [piece.view(p.shape) for piece, p in pieces]

    def end(self, parameters: Sequence[Tensor]) -> None:
        """Subtract theta_+."""
        torch._foreach_sub_(self.pieces, list(parameters))

    def products(self, gradients: Sequence[Tensor]) -> Tensor:
        """(2,) float64: the product with the gradients, and the square."""
        moved, flat = self.pieces, self._flat
        alike = all(
            g.dtype == m.dtype and g.layout == m.layout
            for g, m in zip(gradients, moved, strict=True)
        )
        if flat is None or not alike:
            return torch.stack([dot(gradients, moved), dot(moved, moved)])
        along = [part for g, d in zip(gradients, moved, strict=True) for part in _dots(g, d)]
        square = _dots(flat, flat)
        sums = torch.stack([*along, *square]).double()
        return torch.stack([sums[: len(along)].sum(), sums[len(along) :].sum()])


def dot(one: Sequence[Tensor], two: Sequence[Tensor]) -> Tensor:
    """Inner product of two lists of tensors as real vectors; pieces are summed in float64."""
    parts = []
    for a, b in zip(one, two, strict=True):
        a, b = as_real(a.to_dense() if a.layout != torch.strided else a), as_real(b)
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        parts.append(torch.stack(_dots(a.to(wide), b.to(wide))).double().sum())
    return torch.stack([p.to(parts[0].device) for p in parts]).sum()


def _dots(a: Tensor, b: Tensor) -> list[Tensor]:
    """Products of pieces: BLAS libraries add up 1e7 products in float32 to three digits only."""
    a, b = a.reshape(-1), b.reshape(-1)
    if len(a) <= _PIECE:
        return [torch.dot(a, b)]
    pieces = zip(a.split(_PIECE), b.split(_PIECE), strict=True)
    return [torch.dot(one, two) for one, two in pieces]


def _loss_scale() -> float:
    """The scale of the GradScaler whose ``step`` is making the present step; 1 without one."""
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        if frame is None:
            break
        caller = frame.f_locals.get("self")
        if isinstance(caller, torch.amp.GradScaler):
            return float(caller.get_scale())
        frame = frame.f_back  # type: ignore[assignment]
    return 1.0
