"""Batch normalisation in curvature: three ways to treat its statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._module_copy import own_copy

Inputs = Tensor | Callable[[nn.Module], object] | None
BatchStats = Literal["coupled", "frozen", "running"]
BATCH_STATS = get_args(BatchStats)
_NORM = nn.modules.batchnorm._BatchNorm
_KNOWN = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)


class CoupledBatchNorm(nn.Module):
    """Batch normalisation over the samples of one call, as plain differentiable operations.

    Statistics are those of the inputs, in training and evaluation mode alike, and derivatives go
    through them: the function that is trained, with its samples coupled. Weight and bias are
    shared with the layer it stands for.

    Examples:
        >>> layer = cx.models.CoupledBatchNorm(nn.BatchNorm1d(3))
        >>> bool(layer(torch.randn(64, 3)).mean().abs() < 1e-5)
        True
    """

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape."""
        dims = [d for d in range(x.dim()) if d != 1]
        centred = x - x.mean(dim=dims, keepdim=True)
        variance = centred.square().mean(dim=dims, keepdim=True)
        y: Tensor = centred * torch.rsqrt(variance + float(self.eps))
        if self.weight is None:
            return y
        shape = [1, -1] + [1] * (x.dim() - 2)
        return y * self.weight.view(shape) + self.bias.view(shape)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any layer of ``model`` is a batch normalisation.

    Examples:
        >>> cx.models.has_batch_norm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
        True
    """
    return any(isinstance(m, _NORM) for m in model.modules())


def _takes_the_batch(layer: nn.modules.batchnorm._BatchNorm) -> bool:
    """Whether it normalises by the statistics of the batch."""
    return bool(layer.training) or layer.running_mean is None


@contextmanager
def batch_stats_held(
    model: nn.Module, policy: str | None, x: Inputs, *, drawn: bool = False
) -> Iterator[tuple[nn.Module, str | None]]:
    """For operators on ``model``: what to give them, and as which ``batch_stats``.

    The meanings of :func:`with_batch_stats` without its copy: inside, modules are in evaluation
    mode, and batch norms in the mode of the policy.  SyncBatchNorm, whose training mode talks to
    other processes, still costs the copy.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        >>> x = torch.randn(8, 3)
        >>> with cx.models.batch_stats_held(net, "running", x) as (held, policy):
        ...     K = cx.NTK(held, x, batch_stats=policy)
    """
    modules = list(model.modules())
    norms = [m for m in modules if isinstance(m, _NORM)]
    known = policy is None or policy in BATCH_STATS
    if any(isinstance(m, nn.SyncBatchNorm) for m in norms) or not known:
        yield with_batch_stats(model, policy, x, drawn=drawn), None
        return
    modes = [m.training for m in modules]
    for module in modules:
        if not isinstance(module, _NORM):
            module.training = drawn and module.training
        elif policy is not None:
            module.training = policy != "running"
    given = policy
    if policy is None:
        given = "coupled" if any(map(_takes_the_batch, norms)) else None
    try:
        yield model, given if norms and policy != "running" else None
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def with_batch_stats(
    model: nn.Module, policy: str | None, x: Inputs = None, *, drawn: bool = False
) -> nn.Module:
    """Copy ``model`` so that its batch normalisation keeps no changing state, for curvature probes.

    Args:
        model: any module; it is not changed. Without batch normalisation a plain copy is returned.
        policy: ``"coupled"``: statistics of the batch at hand, with derivatives through them
            (:class:`CoupledBatchNorm`); ``"frozen"``: the statistics of ``x`` as constants;
            ``"running"``: the running averages, as in evaluation.  None follows the mode of each
            layer: ``"coupled"`` in training mode, ``"running"`` in evaluation mode.
        x: inputs whose statistics ``"frozen"`` uses, or a function that runs the model on them.
        drawn: other modules keep their modes, so that dropout stays active; otherwise all are in
            evaluation mode.

    Raises:
        ValueError: for another policy, or ``"frozen"`` without ``x``.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> held = cx.models.with_batch_stats(net, "running")
        >>> held.training
        False
    """
    where = "models.with_batch_stats"
    if policy is not None and policy not in BATCH_STATS:
        v.fail(where, f"policy must be one of {', '.join(BATCH_STATS)}", repr(policy))
    held: nn.Module = own_copy(model)
    layers = [(name, m) for name, m in held.named_modules() if isinstance(m, _NORM)]
    coupled = layers if policy == "coupled" else []
    if policy is None:
        coupled = [(name, m) for name, m in layers if _takes_the_batch(m)]
    if not drawn:
        held.eval()
    for _, layer in layers:
        layer.training = False
    for name, layer in coupled:
        if type(layer).forward not in _KNOWN:
            layer.training = True  # its own forward pass knows what it adds
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(held.get_submodule(parent), leaf, CoupledBatchNorm(layer))
    if policy == "frozen" and layers:
        if x is None:
            v.fail(where, "policy 'frozen' needs the inputs x", x)
        _take_statistics([layer for _, layer in layers], held, x)
    return held


@torch.no_grad()
def _take_statistics(
    layers: list[nn.modules.batchnorm._BatchNorm], model: nn.Module, x: Inputs
) -> None:
    """Set the running statistics of ``layers`` to the biased batch statistics of ``x``."""

    def look(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        dims = [d for d in range(inputs[0].dim()) if d != 1]
        layer.running_mean = inputs[0].mean(dim=dims)
        layer.running_var = inputs[0].var(dim=dims, correction=0)

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        x(model) if callable(x) else model(x)
    finally:
        for hook in hooks:
            hook.remove()
