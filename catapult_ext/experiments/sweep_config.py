"""Settings of a sweep, and what can be wrong with its arguments: found before any computation."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext._module_copy import own_copy
from catapult_ext._store import update_digest
from catapult_ext.data import Dataset
from catapult_ext.probes.observables import active_dropout

_WHERE = "sweep"


@dataclass(frozen=True)
class SweepConfig:
    """Settings of a sweep; model, loss and data are arguments of their own.

    Attributes:
        c: learning rates in units of 1 / lambda_0 (give these or ``eta``), > 0.
        eta: learning rates as they are, > 0.
        steps: full-batch gradient steps of every rate.
        probe_factor: curvature is measured at steps 0, 1 and then at steps growing by this factor;
            ``math.inf``: at the first and last step alone.
        probe_every: also measure at multiples of this number of steps; None for none.
        tol: relative error bound asked for along the way (lambda_0: a tenth of it, at most 1e-4).
        top: dimension of the kernel's top eigenspace the residual is projected on; default O, and
            none without probes. 0 for none, which spares the solve for it.
        cut: loss above which a run is divergent; default ``probes.divergence_cut``.
        linearised: also run the model linearised at its start (squared losses only).
        params: names or patterns of the parameters that are trained; None for all.
        dropout: ``"fixed"`` for one fixed mask, in curvature and steps alike.
        batch_stats: treatment of batch normalisation, ``models.BATCH_STATS``; training then uses
            the statistics of the batch. None takes the model in its present mode.
        memory_budget: memory budget of the operators.
        probes: whether anything is measured along the runs; without, lambda_0 and all losses are
            what is known, which is enough for the phases of a squared loss.

    Examples:
        >>> from catapult_ext.experiments import SweepConfig
        >>> SweepConfig(c=(0.5, 2.5), steps=100).steps
        100
    """

    c: tuple[float, ...] | None = None
    eta: tuple[float, ...] | None = None
    steps: int = 200
    probe_factor: float = 2.0
    tol: float = 1e-3
    top: int | None = None
    cut: float | None = None
    linearised: bool = False
    params: str | tuple[str, ...] | None = None
    dropout: str | None = None
    batch_stats: str | None = None
    probe_every: int | None = None
    memory_budget: int | str | None = None
    probes: bool = True

    def __post_init__(self) -> None:
        if (self.c is None) == (self.eta is None):
            v.fail(_WHERE, "give either c or eta", f"c={self.c}, eta={self.eta}", TypeError)
        name, rates = ("c", self.c) if self.c is not None else ("eta", self.eta)
        assert rates is not None
        v.require(len(rates) > 0, _WHERE, f"{name} must hold at least one learning rate", rates)
        for rate in rates:
            v.require(
                math.isfinite(rate) and rate > 0, _WHERE, f"{name} must be finite and > 0", rate
            )
        v.require(len(set(rates)) == len(rates), _WHERE, f"{name} must hold distinct rates", rates)
        v.integers(_WHERE, steps=self.steps)
        v.require(self.steps >= 1, _WHERE, "steps must be >= 1", self.steps)
        v.require(self.probe_factor > 1, _WHERE, "probe_factor must be > 1", self.probe_factor)
        v.integers(_WHERE, probe_every=self.probe_every, optional=True)
        ok = self.probe_every is None or self.probe_every >= 1
        v.require(ok, _WHERE, "probe_every must be >= 1", self.probe_every)
        v.require(0 < self.tol < 1, _WHERE, "tol must be in (0, 1)", self.tol)
        v.require(self.top is None or self.top >= 0, _WHERE, "top must be >= 0", self.top)
        followed = self.top != 0 and (self.probes or self.top is not None)
        text = "linearised=True needs the top eigenspace: leave top and probes as they are"
        v.require(followed or not self.linearised, _WHERE, text, f"top={self.top}")
        v.require(self.cut is None or self.cut > 0, _WHERE, "cut must be > 0", self.cut)

    def identity(self) -> dict[str, Any]:
        """The settings that tell one run from another; later ones count where they are given."""
        later = ("params", "dropout", "batch_stats", "probe_every", "memory_budget")
        held = dataclasses.asdict(self)
        if held.pop("probes") is False:
            held["probes"] = False
        return {k: a for k, a in held.items() if k not in later or a is not None}

    def dimension(self, outputs: int) -> int:
        """Eigenvectors whose share in the residual is followed, for a net of O outputs."""
        if self.top is None:
            return outputs if self.probes else 0
        return self.top

    def rates(self, lambda0: float) -> list[tuple[float, float]]:
        """(c, eta) of every learning rate, ascending."""
        if self.c is not None:
            return [(c, c / lambda0) for c in sorted(self.c)]
        return [(eta * lambda0, eta) for eta in sorted(self.eta or ())]


def check_problem(
    model: nn.Module, data: Any, loss: Any, linearised: bool, dropout: str | None = None
) -> losses.Loss:
    """Resolve the loss and check that model, data and loss fit, before anything is written.

    Raises:
        TypeError: not a module, or parameters of another dtype than the data's.
        ValueError: non-finite parameters, none at all, active dropout, outputs that are not
            (N, O), or a loss that the sweep cannot follow.
    """
    if not isinstance(model, nn.Module):
        v.fail(_WHERE, "model must be a torch.nn.Module", type(model).__name__, TypeError)
    for name, p in model.named_parameters():
        if not p.is_floating_point():
            v.fail(_WHERE, f"parameter {name} must have a floating dtype", p.dtype, TypeError)
        if isinstance(data, Dataset) and p.dtype != data.y_train.dtype:
            v.fail(_WHERE, f"parameter {name} must have the dtype of the data", p.dtype, TypeError)
        own = data.x_train.device
        v.require(p.device == own, _WHERE, f"the model must be on the data's {own}", p.device)
        v.require(bool(torch.isfinite(p).all()), _WHERE, f"parameter {name} must be finite", "nan")
    v.require(any(p.requires_grad for p in model.parameters()), _WHERE, "model needs parameters", 0)
    drawn = None if dropout else active_dropout(model)
    text = "dropout makes every step random: call model.eval(), or pass dropout='fixed'"
    v.require(drawn is None, _WHERE, text, drawn)
    resolved = losses.resolve(loss)
    v.require(resolved.convex, _WHERE, "loss must have a Gauss-Newton matrix", resolved.name)
    if linearised:
        squared = isinstance(resolved, losses.SquaredLoss)
        v.require(squared, _WHERE, "linearised=True needs a squared loss", resolved.name)
    with torch.no_grad():
        outputs = own_copy(model)(data.x_train.clone())
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if isinstance(data, Dataset):
        wanted = (len(data.x_train), data.outputs)
        needs = f"model must return outputs of shape {wanted} (or pass forward=)"
        v.require(shape == wanted, _WHERE, needs, shape)
    resolved.targets(outputs, data.y_train)
    return resolved


def describe_loss(loss: Any) -> Any:
    """A loss as JSON values: its name, or the class and every setting of a loss module."""
    if isinstance(loss, str):
        return loss
    settings: dict[str, Any] = {"type": getattr(loss, "name", type(loss).__name__)}
    for name, value in sorted(getattr(loss, "__dict__", {}).items()):
        if isinstance(value, (bool, int, float, str)):
            settings[name] = value
    for name, value in getattr(loss, "_buffers", {}).items():
        if isinstance(value, Tensor):
            digest = hashlib.sha256()
            update_digest(digest, name, value)
            settings[name] = digest.hexdigest()[:16]
    inner = getattr(loss, "module", None)
    if isinstance(loss, losses.Loss) and inner is not None:
        settings["module"] = describe_loss(inner)
    return settings
