"""learning_rate_window: lazy below eta_crit, catapult up to eta_max, divergent above; evidence."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext import training
from catapult_ext._autocast import no_autocast
from catapult_ext._model_call import Forward
from catapult_ext._module_copy import own_copy
from catapult_ext.eig import eigsh
from catapult_ext.linops import GGN, LinearOperator, Preconditioned
from catapult_ext.losses import SquaredLoss
from catapult_ext.models import has_batch_norm, with_batch_stats
from catapult_ext.probes.observables import active_dropout, activity, hidden_width
from catapult_ext.probes.phases import DEAD_FRACTION, divergence_cut
from catapult_ext.probes.problem import Problem
from catapult_ext.probes.stability import Rule, rule_of

_WHERE = "learning_rate_window"
# c_act: eta_max = c_act / lambda_0 by activation, for one hidden layer and for more. Ranges around
# what full-batch training of MLPs (width 64-1024, 10 outputs, digits; Gaussian data) showed, no
# wider than a factor 2.5; Lewkowycz et al. 2020 give 4 (linear) and about 12 (ReLU).
# docs/curvature.md counts how often they held elsewhere.
C_ACT = {
    "linear": ((3.5, 6.0), (3.8, 9.0)),
    "ReLU": ((4.2, 10.5), (8.0, 20.0)),
    "LeakyReLU": ((4.8, 12.0), (5.8, 14.5)),
    "Tanh": ((3.5, 7.5), (4.2, 10.5)),
    "Erf": ((3.5, 7.5), (4.2, 10.5)),
    "GELU": ((7.4, 18.5), (10.4, 26.0)),
    "SiLU": ((7.0, 17.5), (9.4, 23.5)),
    "Abs": ((3.0, 5.5), (3.4, 8.5)),
}
_UNKNOWN, _OTHER = "an activation without a table entry", (3.5, 8.75)
_IN_PARAMETERS = "a model linear in its parameters"
_CLOSE = 1.05  # eta_max that leaves no room above eta_crit
_FINE = 1.02  # ratio to which the searches bisect


@dataclass(frozen=True, eq=False)
class LearningRateWindow:
    """Learning rates of one model, loss, data set and optimizer.

    Attributes:
        lambda0: top eigenvalue of the loss's Gauss-Newton matrix (L2 and preconditioner included).
        error: its error bound, backed by ``index_check``.
        index_check: see :class:`~catapult_ext.EigshResult`.
        eta_crit: below it training is stable as its linearisation, above it catapults.
        eta_crit_error: from ``error``.
        eta_c: rate at which the first step stops lowering the loss, by forward passes alone.
        eta_max: (low, high), from the activation table: not measured on this model.
        eta_max_measured: (largest rate that trained, smallest that diverged or killed a layer),
            or None.
        rule: optimizer and its factor.
        evidence: everything the numbers rest on.
    """

    lambda0: float
    error: float
    index_check: str
    eta_crit: float
    eta_crit_error: float
    eta_c: float | None
    eta_max: tuple[float, float]
    eta_max_measured: tuple[float, float] | None
    rule: str
    evidence: dict[str, Any]

    def advice(self) -> str:
        """What to do with it, in one sentence."""
        measured = self.eta_max_measured
        low, high = measured if measured is not None else self.eta_max
        kind = "measured" if measured is not None else f"estimated for {self.evidence['table']}"
        if low < _CLOSE * self.eta_crit:
            return (
                f"For {self.rule}, rates below {self.eta_crit:.3g} train stably; no catapult: "
                f"above {high:.3g} ({kind}) training diverges."
            )
        return (
            f"For {self.rule}, rates below {self.eta_crit:.3g} train stably; from there to between "
            f"{low:.3g} and {high:.3g} ({kind}) expect a catapult, which often ends in a flatter "
            f"and better minimum; start a search at {math.sqrt(self.eta_crit * low):.3g} and warm "
            "up if the first loss matters."
        )


@no_autocast()
def learning_rate_window(
    model: nn.Module,
    loss: object,
    data: Any,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    burn_in: int = 0,
    measure: int = 0,
    tol: float = 1e-3,
    batch_stats: str = "coupled",
    seed: int = 0,
    forward: Forward | None = None,
    params: str | Sequence[str] | None = None,
    dropout: str | None = None,
    memory_budget: int | str | None = None,
) -> LearningRateWindow:
    """Where learning rates are lazy, catapult, and divergent, with the evidence.

    Args:
        model: as for :class:`~catapult_ext.GGN`; left as it is.
        loss: as trained (:func:`catapult_ext.losses.resolve`); its Gauss-Newton matrix is used.
        data: ``(x, y)``, the batch that steps use, or another form that
            :func:`~catapult_ext._batches.batch_of` takes.
        optimizer: None for gradient descent, or a torch SGD (momentum, dampening, Nesterov,
            weight decay), Adam or AdamW, whose state gives the preconditioner.
        burn_in: take so many steps of an Adam without state on a copy, at its own rate.
        measure: steps of the runs that measure eta_max by bisection; 0 for none.
        tol: relative error of lambda_0.
        batch_stats: what batch normalisation means, ``models.BATCH_STATS``.
        seed: of the eigensolver, and of a fixed mask.
        forward: ``forward(model, x)`` returns the outputs; None calls the model.
        params: names or patterns of the parameters that are trained; None for all.
        dropout: ``"fixed"`` for one fixed mask, in curvature and steps alike.
        memory_budget: of the Gauss-Newton matrix.

    Raises:
        ValueError: no Gauss-Newton factor, dropout on, ``params`` with an optimizer, Adam without
            state and ``burn_in=0``, a model whose curvature is zero, parameter groups that differ.
        TypeError: another optimizer, or data without labels.

    Cost:
        About 17 products of 2-3 forward passes for lambda_0, one gradient and about 15 forward
        passes for eta_c, and ``measure`` gradient steps for each of about 10 rates.
    """
    v.module(_WHERE, model)
    v.integers(_WHERE, burn_in=burn_in, measure=measure, seed=seed)
    v.numbers(_WHERE, tol=tol)
    v.require(burn_in >= 0, _WHERE, "burn_in must be >= 0", burn_in)
    v.require(measure >= 0, _WHERE, "measure must be >= 0", measure)
    problem = Problem.of(
        loss,
        data,
        _WHERE,
        forward=forward,
        params=params,
        dropout=dropout,
        memory_budget=memory_budget,
        seed=seed,
    )
    v.require(
        params is None or optimizer is None,
        _WHERE,
        "params= needs optimizer=None (make the other parameters requires_grad_(False) instead)",
        params,
    )
    off = None if dropout else active_dropout(model)
    needs = "dropout must be off (call model.eval(), or pass dropout='fixed')"
    v.require(off is None, _WHERE, needs, off)
    model = problem.trained_copy(model)
    burnt = burn_in > 0 and optimizer is not None and not optimizer.state
    if burnt:
        read = GGN(
            _held(model, problem, batch_stats), problem.loss, problem.data, **problem.options
        )
        problem = problem.read_as(read.targets)
        del read
        model, optimizer = _burnt_in(model, problem, optimizer, burn_in)
    rule = rule_of(optimizer, model)
    held = _held(model, problem, batch_stats)
    operator = GGN(held, problem.loss, problem.data, **problem.options)
    problem, known = problem.read_as(operator.targets), problem.loss
    seen: LinearOperator = operator
    if rule.scale is not None:
        seen = Preconditioned.by(operator.shift(rule.l2) if rule.l2 else operator, rule.scale)
    found = eigsh(seen, tol=tol, seed=seed)
    plain = rule.l2 if rule.scale is None else 0.0  # the preconditioned operator contains it
    lambda0, error = found.eigenvalues[0].item() + plain, found.errors[0].item()
    v.require(lambda0 > 0, _WHERE, "the curvature must be > 0 (a constant model?)", lambda0)
    eta_crit = rule.factor / lambda0
    eta_c, searched = _first_step(held, problem, rule, eta_crit)
    kind, (low, high) = activation_range(model)
    moves = rule.scale is not None or not isinstance(known, SquaredLoss)
    if kind == _IN_PARAMETERS and moves:
        kind, (low, high) = _UNKNOWN, _OTHER
    measured = None
    if measure:
        measured = _measured(held, problem, optimizer, measure, eta_crit, lambda0)
    evidence = {
        "products": found.matvecs,
        "factor": rule.factor,
        "l2": rule.l2,
        "burn_in": burn_in if burnt else 0,
        "table": kind,
        "c_act": (low, high),
        "first_step": searched,
        "measure": measure,
    }
    return LearningRateWindow(
        lambda0=lambda0,
        error=error,
        index_check=found.index_check,
        eta_crit=eta_crit,
        eta_crit_error=eta_crit * error / lambda0,
        eta_c=eta_c,
        eta_max=(low / 2 * eta_crit, high / 2 * eta_crit),
        eta_max_measured=measured,
        rule=rule.name,
        evidence=evidence,
    )


def activation_range(model: nn.Module) -> tuple[str, tuple[float, float]]:
    """Its row of the activation table: a name for people, and the range of c_act."""
    matrices = sum(p.dim() >= 2 for p in model.parameters())
    kinds = {type(m).__name__ for m in model.modules()}
    present = sorted(k for k in C_ACT if k in kinds)
    leaves = [m for m in model.modules() if not list(m.children())]
    silent = (nn.Flatten, nn.Identity, nn.Dropout)
    plain = all(list(m.parameters()) or isinstance(m, silent) for m in leaves)
    deep = matrices > 2
    name = present[0] if len(present) == 1 else "linear" if not present and plain else ""
    if not name:
        return _UNKNOWN, _OTHER
    if name == "linear" and matrices < 2:
        return _IN_PARAMETERS, (2.0, 2.0)  # training is its own linearisation
    depth = "two or more hidden layers" if deep else "one hidden layer"
    return f"{name}, {depth}", C_ACT[name][deep]


def _held(model: nn.Module, problem: Problem, batch_stats: str) -> nn.Module:
    if not has_batch_norm(model):
        return model
    drawn = problem.dropout is not None
    return with_batch_stats(model, batch_stats, problem.outputs, drawn=drawn)


def _gradients(model: nn.Module, problem: Problem) -> tuple[float, list[Tensor]]:
    weights = training.moved(model)
    with torch.enable_grad():
        value = problem.loss(problem.outputs(model), problem.y)
        found = torch.autograd.grad(value, weights, allow_unused=True)
    pairs = zip(found, weights, strict=True)
    return value.item(), [torch.zeros_like(p) if g is None else g for g, p in pairs]


@torch.no_grad()
def _first_step(
    model: nn.Module, problem: Problem, rule: Rule, guess: float
) -> tuple[float | None, dict[str, float]]:
    """Rate at which the loss after one step equals that before: doubling, then bisection."""
    start, direction = _gradients(own_copy(model), problem)
    weights = training.moved(model)
    penalty = rule.l2 / 2
    if rule.l2:
        direction = [d + rule.l2 * p for d, p in zip(direction, weights, strict=True)]
    start += penalty * sum(float(p.square().sum()) for p in weights)
    if rule.scale is not None:
        parts = rule.scale.split([p.numel() for p in weights])
        direction = [d * s.view(d.shape) for d, s in zip(direction, parts, strict=True)]
    passes = 0

    def rises(eta: float) -> bool:
        nonlocal passes
        passes += 1
        stepped = own_copy(model)  # models that cache what they make of parameters start afresh
        after = training.moved(stepped)
        for p, p0, d in zip(after, weights, direction, strict=True):
            p.copy_(p0 - eta * d)
        value = problem.loss(problem.outputs(stepped), problem.y).item()
        value += penalty * sum(float(p.square().sum()) for p in after)
        return not value <= start

    bracket = _bracketed(rises, guess / 4)
    if bracket is None:
        return None, {"passes": passes, "loss": start}
    return math.sqrt(bracket[0] * bracket[1]), {"passes": passes, "loss": start}


def _bracketed(fails: Any, guess: float) -> tuple[float, float] | None:
    """(last that passes, first that fails), their ratio at most _FINE; None if none is found."""
    low, high = 0.0, guess
    for _ in range(40):
        if fails(high):
            break
        low, high = high, 2 * high
    else:
        return None
    while low == 0.0:
        if high < guess * 2.0**-40:
            return None
        if fails(high / 2):
            high /= 2
        else:
            low = high / 2
    while high > _FINE * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fails(middle) else (middle, high)
    return low, high


def _clone(optimizer: Any, model: nn.Module, rate: float, old: nn.Module) -> Any:
    """The same optimizer with the same state on the weights of a copy of ``old``, at ``rate``."""
    weights = training.moved(model)
    group = {k: w for k, w in optimizer.param_groups[0].items() if k not in ("params", "lr")}
    group.pop("initial_lr", None)
    fresh = type(optimizer)([{"params": weights, **group}], lr=rate)
    for mine, theirs in zip(weights, training.moved(old), strict=True):
        if theirs in optimizer.state:
            fresh.state[mine] = copy.deepcopy(optimizer.state[theirs])
    return fresh


def _burnt_in(
    model: nn.Module, problem: Problem, optimizer: Any, count: int
) -> tuple[nn.Module, Any]:
    moved = own_copy(model)
    fresh = _clone(optimizer, moved, float(optimizer.param_groups[0]["lr"]), model)
    for _ in _steps(moved, problem, fresh, count):
        pass
    return moved, fresh


def _steps(
    model: nn.Module, problem: Problem, optimizer: Any, count: int, cut: float = math.inf
) -> Iterator[training.Step]:
    """Full-batch training with a torch optimizer, which also moves what has no gradient."""
    weights = training.moved(model)

    def move(gradients: training.Gradients) -> None:
        for p, g in zip(weights, gradients, strict=True):
            p.grad = torch.zeros_like(p) if g is None else g
        optimizer.step()

    batches = training.whole(model, problem.y)  # what the outputs are a function of, for a problem
    return training.steps(problem.outputs, weights, batches, problem.loss, count, move, cut=cut)


def _measured(
    model: nn.Module,
    problem: Problem,
    optimizer: Any,
    count: int,
    eta_crit: float,
    lambda0: float,
) -> tuple[float, float] | None:
    """Bisection on training: the largest rate that trains and the smallest that does not.

    A run does not train if its loss passes the divergence cut or ends no lower than it began, or if
    a layer dies (:class:`~catapult_ext.probes.Verdict`).
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0) if optimizer is None else optimizer
    first, _ = _gradients(own_copy(model), problem)
    cut = divergence_cut(first, hidden_width(model), lambda0)

    def diverges(eta: float) -> bool:
        moved = own_copy(model)
        fresh = _clone(optimizer, moved, eta, model)
        for step in _steps(moved, problem, fresh, count, cut):
            ended = step.loss
        if not ended < first:
            return True
        active = activity(moved, problem.x, problem.outputs)[1]
        return active is not None and active.worst_inactive > DEAD_FRACTION

    return _bracketed(diverges, eta_crit)
