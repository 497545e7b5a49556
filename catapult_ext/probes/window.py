"""learning_rate_window: what is exact at this point, and the rates at which training works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._model_call import Forward
from catapult_ext._module_copy import own_copy
from catapult_ext._progress import Progress, check_progress, counted
from catapult_ext.eig import EigshResult, eigsh
from catapult_ext.linops import GGN
from catapult_ext.linops.model.policy import Dropout
from catapult_ext.losses import SquaredLoss
from catapult_ext.models import has_batch_norm, with_batch_stats
from catapult_ext.models.batch_norm import BatchStats
from catapult_ext.probes.activation_table import IN_PARAMETERS, activation_row
from catapult_ext.probes.advice import LearningRateWindow
from catapult_ext.probes.first_step import bracket, first_step
from catapult_ext.probes.observables import active_dropout
from catapult_ext.probes.problem import Problem
from catapult_ext.probes.problem_descent import steps
from catapult_ext.probes.rate_trials import Trials, optimizer_of_chosen, optimizer_of_copy
from catapult_ext.probes.stability import Rule, own_rate, rule_of, trained_by
from catapult_ext.probes.step_metric import has_stepped

_WHERE = "learning_rate_window"
_MEASURED, _TRIED = 10, 8  # trials, usually
_COARSE, _STRIDE = 2.0, 4.0  # ratio of the trials' rates at the end, and of the search before
_PATIENCE = 4  # times a trial's steps that a run above its start, as in a catapult, may take
# Where the largest rate that trains lies, in units of the largest that passed a trial: between it
# and twice that, a trial failed; a factor sqrt(2) to both sides is left for longer training.
# benchmarks/largest_rates counts how often it holds.
_SPREAD = (2**-0.5, 2 * 2**0.5)
_START = 0.5  # the rate to start with, in the same units
_ROUGH = 1e-2  # relative error of the curvature after a trial
_HELD_BY_EPS = 0.1  # share of the top vector that is flagged


@no_autocast()
@torch.inference_mode(False)
def learning_rate_window(
    model: nn.Module,
    loss: object,
    data: Any,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    burn_in: int = 0,
    trial_steps: int = 32,
    measure: int = 0,
    tol: float = 1e-3,
    batch_stats: BatchStats | None = None,
    seed: int = 0,
    forward: Forward | None = None,
    params: str | Sequence[str] | None = None,
    dropout: Dropout | None = None,
    memory_budget: int | str | None = None,
    progress: Progress = None,
) -> LearningRateWindow:
    """How large the learning rate may be: exact numbers at this point, and trials of training.

    Curvature changes during training, by factors of 40 and more within the first steps, so the
    edge at the start says little about the largest rate that trains. By default, short trainings
    of copies find that rate to within a factor; ``evidence["trial_steps"]`` has their cost.

    Args:
        model: as for :class:`~catapult_ext.GGN`; it is not changed, nor are random states.
        loss: training loss (:func:`catapult_ext.losses.resolve`); its Gauss-Newton matrix is used.
        data: ``(x, y)``, the batch that steps use, or another form that
            :func:`~catapult_ext._batches.batch_of` takes.
        optimizer: None for gradient descent, or any torch optimizer; its threshold is that of
            :func:`~catapult_ext.stability_threshold`. Parameter groups may differ in rate and
            decay.
        burn_in: number of steps that an adaptive optimizer without state makes on a copy, at its
            own rate, before the curvature is measured; trials start from the model and optimizer
            as given.
        trial_steps: steps of each trial, four times as many if the loss stays above its start
            without diverging; 0 for none.
        measure: steps of the runs that bisect the largest rate instead; 0 for none.
        tol: relative error of lambda_0.
        batch_stats: treatment of batch normalisation, one of ``models.BATCH_STATS``; None follows
            the mode of each layer: "coupled" in training mode, "running" in evaluation mode.
        seed: seed of the eigensolver, and of a fixed dropout mask.
        forward: ``forward(model, x)`` returns the outputs; None calls the model.
        params: names or patterns of the parameters that are trained; None for all.  They keep
            their groups and state in the optimizer; rates are those of the first group that has
            any of them.
        dropout: ``"fixed"`` for one fixed mask, in curvature and steps alike.
        memory_budget: memory budget of the Gauss-Newton matrix.
        progress: True for a bar, or a function of (training steps of trials done, about how many
            there will be); see :mod:`catapult_ext._progress`.

    Raises:
        ValueError: no Gauss-Newton factor, dropout on, an adaptive optimizer without state and
            ``burn_in=0``, ``burn_in`` without an optimizer, a model whose curvature is zero,
            parameters that are not the model's.
        TypeError: no optimizer, or one whose step needs a closure.

    Cost:
        About 17 products of 2-3 forward passes for lambda_0, one gradient and about 15 forward
        passes for eta_c, ``trial_steps`` gradient steps for each of 3 to 8 rates, or ``measure``
        steps for each of about 10.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> data = torch.randn(8, 3), torch.randn(8, 1)
        >>> window = cx.learning_rate_window(net, "mse", data, trial_steps=0)
        >>> window.eta_crit > 0  # 2 / lambda_0
        True
    """
    v.module(_WHERE, model)
    check_progress(_WHERE, progress)
    v.integers(_WHERE, burn_in=burn_in, trial_steps=trial_steps, measure=measure, seed=seed)
    v.numbers(_WHERE, tol=tol)
    for name, value in (("burn_in", burn_in), ("trial_steps", trial_steps), ("measure", measure)):
        v.require(value >= 0, _WHERE, f"{name} must be >= 0", value)
    needs = "burn_in must be 0 without an optimizer, whose steps it makes"
    v.require(burn_in == 0 or optimizer is not None, _WHERE, needs, burn_in)
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
    off = None if dropout else active_dropout(model)
    needs = "dropout must be off (call model.eval(), or pass dropout='fixed')"
    v.require(off is None, _WHERE, needs, off)
    whole, model = model, problem.trained_copy(model)
    if params is not None and isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer_of_chosen(optimizer, whole, model)
    held = model
    if has_batch_norm(model):
        drawn = dropout is not None
        held = with_batch_stats(model, batch_stats, problem.outputs, drawn=drawn)
    if optimizer is not None:
        trained_by(optimizer, model)
    operator = _curvature(held, problem)
    problem = problem.read_as(operator.targets)
    at, rule, burnt = _burnt_in(held, model, problem, optimizer, burn_in)
    top = _top(_curvature(at, problem) if burnt else operator, rule, tol, seed)
    del operator
    v.require(top.value > 0, _WHERE, "the curvature must be > 0 (a constant model?)", top.value)
    eta_crit = rule.factor / top.value
    guess = eta_crit if optimizer is None or rule.reason is None else own_rate(optimizer)
    eta_c, searched = (None, {}) if rule.reason else first_step(at, problem, rule, guess)
    row = _row(held, problem, rule)
    quadratic = row is not None and row[0] == IN_PARAMETERS
    cut_from = top.value if rule.scale is None else 0.0
    measured = passed = broken = None
    with counted(progress, _WHERE, _expected(measure, trial_steps), "steps", of="of about") as seen:
        trials = Trials(held, problem, optimizer, model, cut_from, seen)
        if measure:
            measured = bracket(trials.fails(measure), guess)
        elif trial_steps and not quadratic:
            passed, broken = _tried(trials, trial_steps, guess)
    table = None if row is None else (row[1][0] / 2 * eta_crit, row[1][1] / 2 * eta_crit)
    evidence = {
        "products": top.found.matvecs,
        "factor": rule.factor,
        "reason": rule.reason,
        "l2": 0.0 if rule.decay is None else float(rule.decay.max()),
        "burn_in": burnt,
        "table": None if row is None else row[0],
        "c_act": None if row is None else row[1],
        "first_step": searched,
        "measure": measure,
        "trials": trials.done,
        "trial_steps": trials.steps,
        "lambda_after": None,
        "held_by_eps": top.held_by_eps,
    }
    if passed is not None and trials.best is not None and rule.reason is None:
        ended = rule_of(trials.best.optimizer, trials.best.model) if optimizer else rule
        evidence["lambda_after"] = _top(
            _curvature(trials.best.model, problem), ended, _ROUGH, seed
        ).value
    chosen = _chosen(measured, passed, table, quadratic)
    return LearningRateWindow(
        lambda0=top.value,
        error=top.error,
        index_check=top.found.index_check,
        eta_crit=eta_crit,
        eta_crit_error=eta_crit * top.error / top.value,
        eta_c=eta_c,
        eta_max=chosen[1],
        eta_max_from=chosen[0],
        eta_max_measured=measured,
        start=chosen[2],
        rule=rule.name,
        flags=_flags(top, trials, bool(measure or passed), broken),
        evidence=evidence,
    )


@dataclass(frozen=True, eq=False)
class _Top:
    """The top eigenvalue that the optimizer meets, and the vector's share where eps holds P."""

    value: float
    error: float
    found: EigshResult
    held_by_eps: float


def _top(operator: GGN, rule: Rule, tol: float, seed: int) -> _Top:
    uniform = (
        rule.scale is None and rule.decay is not None and bool((rule.decay == rule.decay[0]).all())
    )
    found = eigsh(operator if uniform else rule.seen(operator), tol=tol, seed=seed)
    added = float(rule.decay[0]) if uniform and rule.decay is not None else 0.0
    share = 0.0
    if rule.held_by_eps is not None:
        weights = found.eigenvectors[:, 0].square()
        share = float(weights[rule.held_by_eps.to(weights.device)].sum() / weights.sum())
    value, error = found.eigenvalues[0].item() + added, found.errors[0].item()
    return _Top(value, error, found, share)


def _expected(measure: int, trial_steps: int) -> int:
    """Training steps of the usual number of trials."""
    return _MEASURED * measure if measure else _TRIED * trial_steps


def _curvature(model: nn.Module, problem: Problem) -> GGN:
    return GGN(model, problem.loss, problem.data, **problem.options)


def _burnt_in(
    held: nn.Module, model: nn.Module, problem: Problem, optimizer: Any, count: int
) -> tuple[nn.Module, Rule, int]:
    """Where curvature is taken, the rule there, and the steps made to get there."""
    if not count or optimizer is None or has_stepped(optimizer):
        return held, rule_of(optimizer, model), 0
    moved = own_copy(held)
    fresh = optimizer_of_copy(optimizer, model, moved, None)
    for _ in steps(moved, problem, fresh, count):
        pass
    return moved, rule_of(fresh, moved), count


def _tried(
    trials: Trials, count: int, guess: float
) -> tuple[tuple[float, float] | None, str | None]:
    """The bracket that trials find, and the error that ended them."""
    try:
        return bracket(trials.fails(count, _PATIENCE), guess, _COARSE, _STRIDE), None
    except RuntimeError as error:  # as of a model that keeps a graph from pass to pass
        return None, str(error).split("\n")[0].split(". ")[0]


def _row(model: nn.Module, problem: Problem, rule: Rule) -> tuple[str, tuple[float, float]] | None:
    """The table's row, where the optimizer and the loss are those of its protocol."""
    if rule.scale is not None or rule.reason or not isinstance(problem.loss, SquaredLoss):
        return None
    row = activation_row(own_copy(model), problem.x, problem.outputs)
    plain = rule.name == "gradient descent" and rule.decay is None
    return row if row is None or row[0] == IN_PARAMETERS or plain else None


def _chosen(
    measured: tuple[float, float] | None,
    passed: tuple[float, float] | None,
    table: tuple[float, float] | None,
    quadratic: bool,
) -> tuple[str | None, tuple[float, float] | None, float | None]:
    """Basis of eta_max, eta_max, and the rate to start with."""
    if measured is not None:
        return "measured", measured, _START * measured[0]
    if passed is not None:
        low, high = _SPREAD
        return "trials", (low * passed[0], high * passed[0]), _START * passed[0]
    if table is not None:
        return "table", table, _START * table[0] if quadratic else None
    return None, None, None


def _flags(top: _Top, trials: Trials, found: bool, broken: str | None) -> tuple[str, ...]:
    flags = [] if broken is None else [f"a step of training fails ({broken})"]
    if top.held_by_eps > _HELD_BY_EPS:
        flags.append(
            f"{top.held_by_eps:.0%} of the top vector lies where the optimizer's second moment is "
            "about eps: eta_crit says more about eps than about the model"
        )
    if trials.done and not found and broken is None:
        rates = [t.rate for t in trials.done]
        word = "no rate" if trials.best is None else "every rate"
        flags.append(f"{word} that was tried trained, from {min(rates):.3g} to {max(rates):.3g}")
    return tuple(flags)
