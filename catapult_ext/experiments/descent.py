"""One training run as the paper makes them: SGD or full batch, L2, momentum, steps or time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import losses
from catapult_ext._validate import require
from catapult_ext.data import Augment, Dataset
from catapult_ext.experiments.curvature import top_curvature, top_space
from catapult_ext.experiments.training import Projection
from catapult_ext.models import has_batch_norm, with_batch_stats
from catapult_ext.probes import accuracy, activity, divergence_cut, hidden_width, weight_norm

EVALUATED_AT_ONCE = 1024  # samples of one forward pass that needs no gradient
DENSE_STEPS = 100  # every loss up to here is kept, then steps growing by LOG_FACTOR
LOG_FACTOR = 1.02


@dataclass(frozen=True)
class Recipe:
    """How runs train, apart from their learning rate and seed.

    Attributes:
        steps: gradient steps at the learning rate (give this or ``time``).
        time: physical time eta * t instead: ceil(time / eta) steps.
        batch: samples of a step, drawn without replacement every epoch; None for all.
        momentum: heavy-ball factor beta in [0, 1): v <- beta v + g, theta <- theta - eta v.
        l2: alpha of the penalty alpha/2 |theta|^2; thresholds then use lambda + alpha.
        final_rate: learning rate of a last stage that all runs share; None for no such stage.
        final_steps: its steps.
        augment: random crops and flips of every batch.
        probe_times: values of eta * t at which curvature and accuracies are also read.
        probe_factor: they are read at steps 0, 1 and steps growing by this factor.
        probe_samples: curvature uses the first so many training samples; None for all.
        probes: whether anything is measured along the way; without, only losses are kept.
        batch_stats: what batch normalisation means to the curvature, ``models.BATCH_STATS``.
        tol: relative tolerance of the curvature.
        top: eigenvectors of the initial kernel whose share in the residual is followed (full
            batch only); 0 for none.
    """

    steps: int | None = None
    time: float | None = None
    batch: int | None = None
    momentum: float = 0.0
    l2: float = 0.0
    final_rate: float | None = None
    final_steps: int = 0
    augment: Augment | None = None
    probe_times: tuple[float, ...] = ()
    probe_factor: float = 2.0
    probe_samples: int | None = None
    probes: bool = True
    batch_stats: str = "coupled"
    tol: float = 1e-3
    top: int = 0

    def __post_init__(self) -> None:
        where = "experiments.Recipe"
        given = (self.steps is None) != (self.time is None)
        require(given, where, "give either steps or time", (self.steps, self.time))
        require(self.steps is None or self.steps >= 1, where, "steps must be >= 1", self.steps)
        ok = self.time is None or (math.isfinite(self.time) and self.time > 0)
        require(ok, where, "time must be finite and > 0", self.time)
        require(self.batch is None or self.batch >= 1, where, "batch must be >= 1", self.batch)
        require(0 <= self.momentum < 1, where, "momentum must be in [0, 1)", self.momentum)
        require(self.l2 >= 0, where, "l2 must be >= 0", self.l2)
        ok = (self.final_rate is None) == (self.final_steps == 0)
        require(ok, where, "final_rate and final_steps go together", self.final_steps)
        require(self.probe_factor > 1, where, "probe_factor must be > 1", self.probe_factor)
        ok = self.top == 0 or (self.batch is None and self.augment is None)
        require(ok, where, "top needs full-batch steps without augmentation", self.top)

    def steps_at(self, eta: float) -> int:
        """Steps of the first stage at ``eta``."""
        if self.steps is not None:
            return self.steps
        assert self.time is not None
        return max(1, math.ceil(self.time / eta - 1e-9))

    def probe_steps(self, eta: float) -> dict[int, str]:
        """Steps at which everything is measured, with why: ``schedule``, ``time`` or ``end``."""
        if not self.probes:
            return {}
        last = self.steps_at(eta)
        found = {0: "schedule"}
        step = 0
        while step < last:
            step = min(last, max(step + 1, math.ceil(step * self.probe_factor)))
            found[step] = "schedule"
        for time in self.probe_times:
            found[min(last, math.ceil(time / eta - 1e-9))] = "time"
        found[last] = "end"
        return found


@dataclass(frozen=True)
class Start:
    """A network at its initial parameters on its data, with the curvature there.

    Attributes:
        model: trained in place; ``state`` brings it back.
        state: parameters and buffers at the start.
        loss: the loss trained (without the L2 penalty).
        data: training and test set.
        lambda0: top eigenvalue of the loss's Gauss-Newton matrix on the probe samples.
        error: its error bound.
        vector: its eigenvector, the start of later solves of every run.
        vectors: (N*O, k) top kernel eigenvectors, or None.
        loss0: initial training loss.
        cut: loss above which a run is given up.
    """

    model: nn.Module
    state: dict[str, Tensor]
    loss: losses.Loss
    data: Dataset
    lambda0: float
    error: float
    vector: Tensor
    vectors: Tensor | None
    loss0: float
    cut: float

    def eta(self, c: float, recipe: Recipe) -> float:
        """The learning rate c / (lambda_0 + alpha), alpha the recipe's L2."""
        return c / (self.lambda0 + recipe.l2)


def start(model: nn.Module, data: Dataset, loss: Any, recipe: Recipe) -> Start:
    """Measure the curvature at the start; the model is copied.

    Raises:
        ValueError: a loss without Gauss-Newton matrix, or a model that does not fit the data.
    """
    where = "experiments.start"
    resolved = losses.resolve(loss)
    require(resolved.convex, where, "loss must have a Gauss-Newton matrix", resolved.name)
    model = copy.deepcopy(model).to(data.x_train.device)
    x, y = _probe_set(data, recipe)
    held = with_batch_stats(model, recipe.batch_stats, x)
    vectors = None
    if recipe.top:
        found = top_space(held, resolved, x, y, recipe.top, recipe.tol / 10)
        value = found.lambda0
        error = found.error
        vector = found.vector
        vectors = found.vectors
    else:
        value, error, vector = top_curvature(held, resolved, x, y, None, recipe.tol / 10)
    require(value > 0, where, "lambda_0 must be > 0 (a constant model?)", value)
    state = {name: v.detach().clone() for name, v in model.state_dict().items()}
    # The loss that training sees first, with the batch statistics it uses.
    loss0 = resolved(outputs_of(with_batch_stats(model, "coupled"), data.x_train), data.y_train)
    cut = divergence_cut(loss0.item(), hidden_width(model), value)
    return Start(model, state, resolved, data, value, error, vector, vectors, loss0.item(), cut)


def _probe_set(data: Dataset, recipe: Recipe) -> tuple[Tensor, Tensor]:
    count = recipe.probe_samples
    return data.x_train[:count], data.y_train[:count]


@torch.no_grad()
def outputs_of(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs without gradients, computed piecewise where no sample sees another."""
    coupled = model.training or any(type(m).__name__ == "CoupledBatchNorm" for m in model.modules())
    if len(x) <= EVALUATED_AT_ONCE or coupled:
        return model(x)
    return torch.cat([model(part) for part in x.split(EVALUATED_AT_ONCE)])


class _Batches:
    """Batches without replacement, a new order every epoch, from a seeded generator."""

    def __init__(self, data: Dataset, recipe: Recipe, seed: int) -> None:
        self.x, self.y = data.train
        self.size = min(recipe.batch or len(self.x), len(self.x))
        self.augment = recipe.augment
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64, device="cpu")

    def next(self) -> tuple[Tensor, Tensor]:
        x, y = self.x, self.y
        if self.size < len(x):
            if len(self.order) < self.size:  # what is left of an epoch is dropped
                self.order = torch.randperm(len(x), generator=self.generator, device="cpu")
            index, self.order = self.order[: self.size], self.order[self.size :]
            x, y = x[index], y[index]
        return (x if self.augment is None else self.augment(x, self.generator)), y


def train(
    problem: Start,
    eta: float,
    recipe: Recipe,
    *,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train at ``eta`` from the start; returns the record of the run (plain JSON values).

    Args:
        problem: see :func:`start`.
        eta: learning rate.
        recipe: everything else.
        seed: of batches and augmentation; the same for all rates of a sweep.
        on_step: told step and batch loss.

    Returns:
        ``eta``, ``c`` = eta (lambda_0 + l2), ``steps``, ``diverged_at`` (-1: never), ``loss0``,
        ``loss_peak`` and ``loss_peak_at`` over all steps, ``rose_at`` (first step whose loss
        exceeds the first one, -1: never), thinned curves ``loss_steps`` / ``loss`` (and ``growth``
        of the residual's top components where ``recipe.top``), and ``probes``: rows measured
        along the way, the last of the first stage marked ``end`` and that of the second ``final``.
    """
    model = problem.model
    model.load_state_dict(problem.state)
    model.train()
    weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    velocity = [torch.zeros_like(p) for p in weights] if recipe.momentum else None
    batches, probe = _Batches(problem.data, recipe, seed), _Probe(problem, recipe)
    projection = None if problem.vectors is None else Projection(problem.vectors)
    marks, main = recipe.probe_steps(eta), recipe.steps_at(eta)
    curve: list[float] = []
    diverged_at = -1
    for step in range(main + recipe.final_steps + 1):
        if step in marks:
            probe.measure(step, eta * step, marks[step])
        x, y = batches.next()
        with torch.enable_grad():
            outputs = model(x)
            loss = problem.loss.value(outputs, problem.loss.targets(outputs, y))
            value = loss.item()
            curve.append(value)
            if not value <= problem.cut:
                diverged_at = step
                break
            (residual,) = torch.autograd.grad(loss, outputs)
            if step < main + recipe.final_steps:
                gradients = torch.autograd.grad(outputs, weights, residual, allow_unused=True)
        if projection is not None:
            projection.follow(residual.reshape(-1, 1))
        if on_step is not None:
            on_step(step, value)
        if step < main + recipe.final_steps:
            rate = eta if step < main or recipe.final_rate is None else recipe.final_rate
            _move(weights, gradients, velocity, rate, recipe)
    if diverged_at < 0 and recipe.final_steps and recipe.probes:
        probe.measure(main + recipe.final_steps, eta * main, "final")
    growth = None if projection is None else projection.growth[0]
    return _record(problem, eta, recipe, curve, diverged_at, growth) | {"probes": probe.rows}


@torch.no_grad()
def _move(
    weights: list[Tensor],
    gradients: tuple[Tensor | None, ...],
    velocity: list[Tensor] | None,
    rate: float,
    recipe: Recipe,
) -> None:
    pairs = [(i, g) for i, g in enumerate(gradients) if g is not None]
    used, steps = [weights[i] for i, _ in pairs], [g for _, g in pairs]
    if recipe.l2:
        steps = list(torch._foreach_add(steps, used, alpha=recipe.l2))
    if velocity is not None:
        held = [velocity[i] for i, _ in pairs]
        torch._foreach_mul_(held, recipe.momentum)
        torch._foreach_add_(held, steps)
        steps = held
    torch._foreach_add_(used, steps, alpha=-rate)


def _record(
    problem: Start,
    eta: float,
    recipe: Recipe,
    curve: list[float],
    diverged_at: int,
    growth: list[float] | None,
) -> dict[str, Any]:
    finite = [v for v in curve if math.isfinite(v)]
    limit = curve[0] * (1 + 1e-6)
    kept = [0]
    while kept[-1] < len(curve) - 1:
        following = kept[-1] + 1 if kept[-1] < DENSE_STEPS else math.ceil(kept[-1] * LOG_FACTOR)
        kept.append(min(len(curve) - 1, following))
    peak = max(finite)
    record: dict[str, Any] = {
        "eta": eta,
        "c": eta * (problem.lambda0 + recipe.l2),
        "lambda0": problem.lambda0,
        "steps": recipe.steps_at(eta),
        "diverged_at": diverged_at,
        "loss0": curve[0],
        "loss_peak": peak,
        "loss_peak_at": curve.index(peak),
        "rose_at": next((i for i, v in enumerate(curve) if not v <= limit), -1),
        "loss_steps": kept,
        "loss": [curve[i] for i in kept],
    }
    if growth is not None:
        # A divergent step has a loss but no residual worth projecting.
        record["growth"] = [growth[i] for i in kept if i < len(growth)]
        record["grew_at"] = next((i for i, v in enumerate(growth) if v > 1 + 1e-6), -1)
    return record


class _Probe:
    """Measures one row of everything at the present parameters."""

    def __init__(self, problem: Start, recipe: Recipe) -> None:
        self.problem, self.recipe = problem, recipe
        self.vector = problem.vector  # warm start, within this run only
        self.rows: list[dict[str, Any]] = []

    @torch.no_grad()
    def measure(self, step: int, time: float, mark: str) -> None:
        """Append a row; the model keeps its mode and its buffers."""
        problem, recipe, model = self.problem, self.recipe, self.problem.model
        (x, y), (x_test, y_test) = problem.data.train, problem.data.test
        row: dict[str, Any] = {"step": step, "time": time, "mark": mark}
        value, error = problem.lambda0, problem.error
        if step > 0:
            probe_x, probe_y = _probe_set(problem.data, recipe)
            held = with_batch_stats(model, recipe.batch_stats, probe_x)
            if not bool(torch.isfinite(outputs_of(held, probe_x)).all()):
                return  # the next loss ends the run
            value, error, self.vector = top_curvature(
                held, problem.loss, probe_x, probe_y, self.vector, recipe.tol
            )
        row |= {"lambda": value, "lambda_error": error, "weight_norm": weight_norm(model)}
        # Running averages lag behind large steps: evaluate with the training set's own statistics.
        policy = "frozen" if has_batch_norm(model) else "running"
        evaluated = with_batch_stats(model, policy, x)
        f = outputs_of(evaluated, x)
        row["train_loss"] = problem.loss(f, y).item()
        tested = outputs_of(evaluated, x_test) if len(x_test) else None
        row["test_loss"] = None if tested is None else problem.loss(tested, y_test).item()
        if problem.data.classes:
            row["train_accuracy"] = accuracy(f, y)
            row["test_accuracy"] = None if tested is None else accuracy(tested, y_test)
        _, active = activity(evaluated, x[:EVALUATED_AT_ONCE])
        if active is not None:
            row["inactive"], row["worst_inactive"] = active.inactive, active.worst_inactive
            row["dead_units"] = active.dead
        self.rows.append(row)
