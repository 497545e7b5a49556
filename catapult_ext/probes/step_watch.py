"""What one optimizer step did to the parameters, seen by hooks, whatever its class."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FRAMES = 16  # callers of an optimizer's step among which a GradScaler is looked for


class StepWatch:
    """Displacement and gradient of the optimizer's steps, from the hooks that torch offers.

    The gradient is the loss's own.  Where something changed it in place between the backward pass
    and the step (clipping, ``GradScaler.unscale_``), a copy made during the backward pass is used.
    Copies are made at the first step and, once a change was seen, at every step.

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
        self._seen: dict[Tensor, tuple[Tensor, int]] = {}
        self._copies: dict[Tensor, Tensor] = {}
        self._copying = True
        self._held: dict[Tensor, Tensor] | None = None
        self._closure = False
        hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.is_leaf and p.requires_grad:
                    hooks.append(p.register_post_accumulate_grad_hook(self._accumulated))
        self._hooks: list[Any] = hooks

    def close(self) -> None:
        """Take the hooks away and drop all copies."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._seen, self._copies, self._held = {}, {}, None
        self.displacement, self._gradients = [], []

    def clear(self, *, measuring: bool) -> None:
        """Forget the step; say whether the next one is measured."""
        self.measuring, self.steps = measuring, 0
        self.flags, self.products = [], None
        self._seen, self._held = {}, None

    def hold_gradient(self) -> None:
        """Copy the gradients as they are: the loss's own, at the present parameters."""
        if self.measuring:
            present = (p for g in self.optimizer.param_groups for p in g["params"])
            self._held = {p: p.grad.detach().clone() for p in present if p.grad is not None}

    def _accumulated(self, p: Tensor) -> None:
        if not self.measuring or p.grad is None:
            return
        self._seen[p] = (p.grad, p.grad._version)
        if self._copying:
            self._copies[p] = p.grad.detach().clone()

    @torch.no_grad()
    def _before(self, _optimizer: Any, given: Any, named: Any) -> None:
        if not self.measuring or self.steps:
            return
        groups = self.optimizer.param_groups
        self.rates = [float(g["lr"]) if "lr" in g else float("nan") for g in groups]
        self.parameters = [p for g in groups for p in g["params"] if p.requires_grad]
        # an optimizer's arguments begin with itself
        closure = given[1] if len(given) > 1 else named.get("closure")
        self._closure = closure is not None
        if self.versions and self.versions != self._version():
            self.flags.append("parameters changed between steps")
        same = len(self.displacement) == len(self.parameters) and all(
            d.shape == p.shape and d.dtype == p.dtype and d.device == p.device
            for d, p in zip(self.displacement, self.parameters, strict=True)
        )
        if not same:
            self.displacement = [torch.empty_like(p) for p in self.parameters]
        torch._foreach_copy_(self.displacement, self.parameters)
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
        changed = any(
            p.grad is not seen or seen._version != version
            for p, (seen, version) in self._seen.items()
        )
        if not changed:
            self._copying, self._copies = False, {}
            return self._all([p.grad for p in self.parameters])
        if not self._copying:
            self._copying = True
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
        torch._foreach_sub_(self.displacement, self.parameters)
        self.versions = self._version()
        if self._gradients:  # at once, as the loop may set gradients to zero in place
            moved = self.displacement
            self.products = torch.stack([dot(self._gradients, moved), dot(moved, moved)])
        self._gradients = []

    def _version(self) -> int:
        return sum(p._version for p in self.parameters)


def dot(one: Sequence[Tensor], two: Sequence[Tensor]) -> Tensor:
    """Sum of the products of all entries, in float64 over the tensors."""
    parts = []
    for a, b in zip(one, two, strict=True):
        a = a.to_dense() if a.layout != torch.strided else a
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        parts.append(torch.dot(a.reshape(-1).to(wide), b.reshape(-1).to(wide)).double())
    return torch.stack([p.to(parts[0].device) for p in parts]).sum()


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
