"""One training run as the paper makes them: SGD or full batch, L2, momentum, steps or time."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from catapult_ext.experiments.curvature import top_curvature
from catapult_ext.experiments.start import (
    Start,
    at_once,
    held_still,
    outputs_of,
    probe_set,
    start,
)
from catapult_ext.models import has_batch_norm, with_batch_stats
from catapult_ext.probes import accuracy, activity, weight_norm
from catapult_ext.probes.record import Projection, Row, columns, thinned
from catapult_ext.training import Recipe, Step, epochs, has_diverged, moved, steps

__all__ = ["Recipe", "Run", "Start", "descend", "start", "train"]


@dataclass
class Run:
    """Record of one training run.

    Attributes:
        losses: batch losses; their number is that of the steps plus one.
        rows: measurements at the probe steps.
        projection: components of the residual along the kernel's eigenvectors, if followed.
        diverged_at: step whose loss was not finite or above the cut; -1 if there was none.
    """

    losses: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    projection: Projection | None = None
    diverged_at: int = -1


LOOK_EVERY = 16  # steps made before a device is asked for their losses


class _Looks:
    """The losses and projections of steps that are still on the device."""

    def __init__(self, run: Run, on_step: Callable[[int, float], None] | None) -> None:
        self._run, self._on_step = run, on_step
        self._steps: list[Step] = []
        self._measured: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self._steps)

    def note(self, step: Step) -> None:
        """Take a step; nothing is read."""
        self._steps.append(dataclasses.replace(step, batch=(None, None)))
        if self._run.projection is not None:
            residual = step.residual.reshape(-1, 1)
            self._measured.append(self._run.projection.measure(residual)[:, 0])

    def look(self) -> None:
        """Read what was noted, in one copy, into the run; nothing beyond a divergence counts."""
        run, noted = self._run, self._steps
        numbers = torch.stack([step.value.double() for step in noted]).unsqueeze(1)
        if self._measured:
            numbers = torch.cat([numbers, torch.stack(self._measured)], 1)
        for step, (loss, *measured) in zip(noted, numbers.tolist(), strict=True):
            run.losses.append(loss)
            if run.projection is not None and math.isfinite(loss):
                run.projection.take([[value] for value in measured], [0])
            if has_diverged(loss, step.cut):
                run.diverged_at = step.number
                break
            if self._on_step is not None:
                self._on_step(step.number, loss)
        self._steps, self._measured = [], []


def descend(
    problem: Start,
    eta: float,
    recipe: Recipe,
    *,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> Run:
    """Train at ``eta`` from the start; nothing carries over from one run to the next.

    A step is probed once its loss is known to be finite and below the cut.

    Args:
        problem: see :func:`start`.
        eta: learning rate.
        recipe: everything else.
        seed: seed of batches and augmentation; the same for all rates of a sweep.
        on_step: called with step and batch loss.
    """
    model = problem.model
    model.load_state_dict(problem.state)
    if recipe.batch_stats is not None:
        model.train()
    weights, main = moved(model), recipe.steps_at(eta)
    move = recipe.mover(weights, eta)
    batches = epochs(*problem.data.train, recipe.batch, seed, recipe.augment)
    vectors, marks = problem.top.vectors, recipe.probe_steps(eta)
    run = Run(projection=None if vectors is None else Projection(vectors))
    vector = problem.top.vector  # warm start, within this run only
    count = main + recipe.final_steps
    look_every = 1 if weights[0].device.type == "cpu" else LOOK_EVERY
    looks = _Looks(run, on_step)
    rates = (model, weights, batches, problem.loss, count, move)
    for step in steps(*rates, cut=problem.cut, ahead=look_every > 1):
        looks.note(step)
        marked = step.number in marks
        if marked or step.number == count or len(looks) == look_every:
            looks.look()
        if run.diverged_at >= 0:
            break
        if marked:
            time, mark = eta * min(step.number, main), marks[step.number]
            row: Row = {"step": step.number, "time": time, "mark": mark}
            vector = _measure(row, problem, recipe, step, vector)
            tell_first(row, run.rows)
            run.rows.append(row)
        if step.number >= main and recipe.final_rate is not None:
            move.rate = recipe.final_rate
    return run


def tell_first(row: Row, earlier: list[Row]) -> None:
    """Warn of the first curvature of a run that could not be measured."""
    if row.get("reason") and not any(r.get("reason") for r in earlier):
        said = f"no curvature at step {row['step']}, training goes on: {row['reason']}"
        warnings.warn(f"catapult_ext.experiments: {said}", RuntimeWarning, stacklevel=3)


@torch.no_grad()
def _measure(
    row: Row, problem: Start, recipe: Recipe, step: Step, vector: torch.Tensor
) -> torch.Tensor:
    """Fill the row at the present parameters; returns the curvature's eigenvector.

    The model keeps its mode and its buffers.  A curvature that cannot be measured is None, with the
    reason in the row: training continues, and the eigenvector is the one given.
    """
    model, loss = problem.model, problem.loss
    (x, y), (x_test, y_test) = problem.data.train, problem.data.test
    row["lambda"], row["lambda_error"] = problem.lambda0, problem.top.error
    if step.number > 0:
        probe_x, probe_y = probe_set(problem.data, recipe)
        still = held_still(model, recipe, probe_x)
        try:
            row["lambda"], row["lambda_error"], vector = top_curvature(
                still, loss, probe_x, probe_y, vector, recipe.tol, **problem.options
            )
        except Exception as error:  # the start was measured: here training left what can be probed
            row["lambda"] = row["lambda_error"] = None
            row["reason"] = f"{type(error).__name__}: {error}"
    row["weight_norm"] = weight_norm(model)
    evaluated, f, count = model, step.outputs, at_once(recipe)
    if recipe.batch_stats is not None:
        # Running averages lag behind large steps: evaluate with the training set's own statistics.
        policy = "frozen" if has_batch_norm(model) else "running"
        evaluated = with_batch_stats(model, policy, x)
        f = outputs_of(evaluated, x)
    row["train_loss"] = loss(f, y).item()
    tested = outputs_of(evaluated, x_test, count) if len(x_test) else None
    row["test_loss"] = None if tested is None else loss(tested, y_test).item()
    if problem.data.classes:
        row["train_accuracy"] = accuracy(f, y)
        row["test_accuracy"] = None if tested is None else accuracy(tested, y_test)
    _, active = activity(evaluated, x[:count])
    if active is not None:
        row["inactive"], row["worst_inactive"] = active.inactive, active.worst_inactive
        row["dead_units"] = active.dead
    return vector


def train(
    problem: Start,
    eta: float,
    recipe: Recipe,
    *,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """:func:`descend`, as a record of plain JSON values with thinned curves.

    Returns:
        ``eta``, ``c`` = eta (lambda_0 + l2), ``steps``, ``diverged_at`` (-1: never), ``loss0``,
        ``loss_peak`` and ``loss_peak_at`` over all steps, ``rose_at`` (first step whose loss
        exceeds the first one, -1: never), thinned curves ``loss_steps`` / ``loss`` (and ``growth``
        of the residual's top components where ``recipe.top``), and ``probes``: rows measured
        along the way, the last of the first stage marked ``end`` and that of the second ``final``.
    """
    run = descend(problem, eta, recipe, seed=seed, on_step=on_step)
    return run_record(run, problem, eta, recipe)


def run_record(run: Run, problem: Start, eta: float, recipe: Recipe) -> dict[str, Any]:
    """The record of :func:`train` of a run that was made."""
    curve, kept = run.losses, thinned(len(run.losses))
    peak, limit = max(v for v in curve if math.isfinite(v)), curve[0] * (1 + 1e-6)
    record: dict[str, Any] = {
        "eta": eta,
        "c": eta * (problem.lambda0 + recipe.l2),
        "lambda0": problem.lambda0,
        "steps": recipe.steps_at(eta),
        "diverged_at": run.diverged_at,
        "loss0": curve[0],
        "loss_peak": peak,
        "loss_peak_at": curve.index(peak),
        "rose_at": next((i for i, v in enumerate(curve) if not v <= limit), -1),
        "loss_steps": kept,
        "loss": [curve[i] for i in kept],
        "probes": run.rows,
    }
    if run.projection is not None:
        # A divergent step has a loss but no residual worth projecting.
        growth = run.projection.growth[0][: run.diverged_at if run.diverged_at >= 0 else None]
        record["growth"] = [growth[i] for i in kept if i < len(growth)]
        record["grew_at"] = next((i for i, v in enumerate(growth) if v > 1 + 1e-6), -1)
    return record


def sweep_record(run: Run, eta: float) -> dict[str, Any]:
    """A run as sweeps store it: every finite loss, and the rows turned into columns.

    Returns:
        ``eta``, ``diverged_at``, ``loss``, ``projection`` and ``growth`` at every step
        (empty where not followed), and the
        columns of :func:`~catapult_ext.probes.record.columns` at ``probe_steps``; ``reasons`` by
        step where a curvature could not be measured.
    """
    followed = run.projection  # None where no eigenspace was asked for
    reasons = {str(row["step"]): row["reason"] for row in run.rows if row.get("reason")}
    return {
        "eta": eta,
        "diverged_at": run.diverged_at,
        "loss": [value for value in run.losses if math.isfinite(value)],
        "projection": [] if followed is None else followed.norm[0],
        "growth": [] if followed is None else followed.growth[0],
        **columns(run.rows),
        **({"reasons": reasons} if reasons else {}),
    }
