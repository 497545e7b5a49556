"""Gradient descent of many runs as one program where nets are small: rates, and their seeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from catapult_ext._free_memory import ran_out
from catapult_ext.experiments.curvature import Followed
from catapult_ext.experiments.descent import LOOK_EVERY, Run, descend, tell_first
from catapult_ext.experiments.stacked_chain import (
    DenseLayer,
    StackedChain,
    at_once,
    dense_layers,
    in_cache,
)
from catapult_ext.experiments.stacked_loss import StackedLoss
from catapult_ext.experiments.start import Start, probe_set
from catapult_ext.experiments.start import at_once as evaluated_at_once
from catapult_ext.probes.record import Projection, Row
from catapult_ext.training import Recipe, epochs, has_diverged

OnStep = Callable[[int, float], None]


def chunks(problem: Start, count: int, recipe: Recipe) -> list[list[int]]:
    """How ``count`` runs are shared out: each list is trained as one program.

    Runs that cannot be stacked, or do not gain by it, stand alone.  A function of the model, the
    sizes, the recipe and the kind of device alone, never of what memory is free.
    """
    layers = stackable(problem, recipe)
    size = 1
    if layers is not None:
        size = max(1, at_once(layers, *_sizes(problem, recipe)))
    return [list(range(i, min(i + size, count))) for i in range(0, count, size)]


def stackable(problem: Start, recipe: Recipe) -> list[DenseLayer] | None:
    """The layers of the chain where runs can be stacked and gain by it, else None."""
    plain = recipe.steps is not None and recipe.final_rate is None and recipe.augment is None
    plain = plain and recipe.optimizer is None
    if not plain or recipe.probe_times or not problem.loss.convex:
        return None
    layers, shape = dense_layers(problem.model), problem.data.x_train.shape
    if layers is None or layers[0].inputs != math.prod(shape[1:]):
        return None
    if len(shape) != 2 and type(problem.model[0]) is not torch.nn.Flatten:  # type: ignore[index]
        return None
    return layers if at_once(layers, *_sizes(problem, recipe)) else None


def _sizes(problem: Start, recipe: Recipe) -> tuple[int, int, str]:
    """Samples of a step, bytes of a number, and the kind of device."""
    x = problem.data.x_train
    return min(recipe.batch or len(x), len(x)), x.element_size(), x.device.type


def descend_all(
    problem: Start,
    etas: Sequence[float],
    recipe: Recipe,
    *,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> list[Run]:
    """:func:`~catapult_ext.experiments.descent.descend` at every rate, small nets stacked.

    Args:
        problem: see :func:`~catapult_ext.experiments.start.start`.
        etas: learning rates; results have their order.
        recipe: everything else.
        seed: seed of the batches, which all runs share.
        on_step: called with step and batch loss, that of the first run left where runs are stacked.

    Cost:
        The same steps as one run after the other, without their Python, and fewer products:
        curvature is followed (:class:`~catapult_ext.TopTracker`) where a run alone solves again.
    """
    return descend_runs([(problem, eta) for eta in etas], recipe, seed=seed, on_step=on_step)


def descend_runs(
    runs: Sequence[tuple[Start, float]],
    recipe: Recipe,
    *,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> list[Run]:
    """Train several starts of one architecture on the same data, each with its learning rate.

    If memory runs out, a chunk of runs is split once into two halves, with a RuntimeWarning.  The
    results do not change.

    Args:
        runs: pairs of a start and a learning rate, grouped by start.  The starts may differ only in
            the values of their tensors, their curvature and their cut.
        recipe: as in :func:`descend_all`.
        seed: as in :func:`descend_all`.
        on_step: as in :func:`descend_all`.
    """
    layers = stackable(runs[0][0], recipe)
    if layers is None:
        return [descend(problem, eta, recipe, seed=seed, on_step=on_step) for problem, eta in runs]
    found: list[Run] = []
    for part in chunks(runs[0][0], len(runs), recipe):
        chosen = [runs[i] for i in part]
        try:
            found += _Stack(chosen, layers, recipe, seed).descend(on_step)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not ran_out(error) or len(chosen) == 1:
                raise
            found += _halved(chosen, layers, recipe, seed, on_step)
    return found


def _halved(
    runs: Sequence[tuple[Start, float]],
    layers: Sequence[DenseLayer],
    recipe: Recipe,
    seed: int,
    on_step: OnStep | None,
) -> list[Run]:
    """Repeat a chunk that ran out of memory, from its start, in two halves."""
    half = (len(runs) + 1) // 2
    text = f"{len(runs)} runs do not fit into memory together, {half} at a time are tried"
    warnings.warn(f"catapult_ext.experiments: {text}", RuntimeWarning, stacklevel=3)
    parts = (runs[:half], runs[half:])
    return [run for part in parts for run in _Stack(part, layers, recipe, seed).descend(on_step)]


class _Stack:
    """One chunk of runs in progress."""

    def __init__(
        self,
        runs: Sequence[tuple[Start, float]],
        layers: Sequence[DenseLayer],
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.starts, self.etas = [start for start, _ in runs], [eta for _, eta in runs]
        self.problem, self.recipe = self.starts[0], recipe
        states = [start.state for start in self.starts]
        self.chain = StackedChain.of_states(layers, states, recipe.momentum)
        self.size = max(1, in_cache(layers, *_sizes(self.problem, recipe)))
        x, y = self.problem.data.train
        self.x, self.y = x.flatten(1), y
        self.batches = epochs(self.x, y, recipe.batch, seed)
        self.batch_loss = StackedLoss(self.problem.loss)
        self.runs = [Run() for _ in runs]
        self.joint: list[tuple[Projection, int]] = []  # of each run: that of its start, its column
        for start, own in groupby(self.starts):
            columns = range(len(list(own)))
            if start.top.vectors is not None:
                projection = Projection(start.top.vectors, len(columns))
                self.joint += [(projection, column) for column in columns]
        self.curvature = Followed(
            self.problem.model, self.problem.loss, recipe.tol, **self.problem.options
        )
        self._hold(list(range(len(runs))))

    def _hold(self, runs: list[int]) -> None:
        """The runs that are still in the stack, their rates, and the parts that take turns."""
        self.held = runs
        rates = [self.etas[i] for i in runs]
        self.rates = (
            torch.tensor(rates, dtype=torch.float64, device="cpu").to(self.x).view(-1, 1, 1)
        )
        self.pieces = self.chain.pieces(self.size)

    def descend(self, on_step: OnStep | None) -> list[Run]:
        """Train all runs together; each :class:`Run` equals that of a separate training."""
        recipe = self.recipe
        marks, count = recipe.probe_steps(1.0), recipe.steps
        assert count is not None
        look_every = 1 if self.x.device.type == "cpu" else LOOK_EVERY
        noted: list[tuple[int, Tensor]] = []
        for number in range(count + 1):
            x, y = next(self.batches)
            if number not in marks and number < count:
                noted.append((number, self._step(x, y)))
                if len(noted) == look_every:
                    self._look(noted, on_step)
                    noted = []
            else:
                f = self.chain.forward(x)
                values, slope = self.batch_loss(f, y)
                noted.append((number, self._numbers(values, slope, self.held)))
                kept = self._look(noted, on_step)
                f, slope, noted = f[kept], slope[kept], []
                if self.held and number in marks:
                    self._measure(number, marks[number], f)
                if self.held and number < count:
                    self.chain.move(slope.mul_(self.rates), self._l2(self.rates))
            if not self.held:
                break
        return self._finished()

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of all runs, as many at a time as fit the cache; the numbers before it."""
        values, slopes = [], []
        for piece, rates in zip(self.pieces, self.rates.split(self.size), strict=True):
            value, slope = self.batch_loss(piece.forward(x), y)
            values.append(value)
            slopes.append(slope.clone() if self.joint else slope)
            piece.move(slope.mul_(rates), self._l2(rates))
        return self._numbers(torch.cat(values), torch.cat(slopes), self.held)

    def _l2(self, rates: Tensor) -> Tensor | None:
        return rates * self.recipe.l2 if self.recipe.l2 else None

    def _numbers(self, values: Tensor, slope: Tensor, runs: Sequence[int]) -> Tensor:
        """(1 or 3, R) losses, growth and norm of the projections, on the device."""
        numbers = values.double()[None]
        if not self.joint:
            return numbers
        residual, found = slope.flatten(1).T, []
        for projection, own in groupby(enumerate(runs), lambda pair: self.joint[pair[1]][0]):
            at, of = zip(*own, strict=True)
            columns = [self.joint[i][1] for i in of]
            found.append(projection.measure(residual[:, at[0] : at[-1] + 1], columns))
        return torch.cat([numbers, torch.cat(found, dim=1)])

    def _look(self, noted: list[tuple[int, Tensor]], on_step: OnStep | None) -> Tensor | slice:
        """Read what was noted; leave out the runs that diverged, and return which stay."""
        alive = dict(enumerate(self.held))
        for number, numbers in noted:
            values, *projected = numbers.tolist()
            for at, index in list(alive.items()):
                run, loss = self.runs[index], values[at]
                run.losses.append(loss)
                if self.joint and math.isfinite(loss):
                    projection, column = self.joint[index]
                    projection.take([[row[at]] for row in projected], [column])
                if has_diverged(loss, self.starts[index].cut):
                    run.diverged_at = number
                    del alive[at]
            if on_step is not None and alive:
                on_step(number, values[next(iter(alive))])
        if len(alive) == len(self.held):
            return slice(None)
        kept = torch.tensor(list(alive), dtype=torch.int64, device=self.x.device)
        if alive:
            self.chain.keep(kept)
            self.curvature.keep(list(alive))
        self._hold(list(alive.values()))
        return kept

    def _measure(self, number: int, mark: str, f: Tensor) -> None:
        """A row of every run that is left, at the present parameters; ``f`` is of the batch."""
        rows: list[Row] = [
            {"step": number, "time": self.etas[i] * number, "mark": mark} for i in self.held
        ]
        self._curvatures(number, mark, rows)
        self._evaluate(rows, f)
        for i, row in zip(self.held, rows, strict=True):
            tell_first(row, self.runs[i].rows)
            self.runs[i].rows.append(row)

    def _curvatures(self, number: int, mark: str, rows: list[Row]) -> None:
        if number == 0:
            for i, row in zip(self.held, rows, strict=True):
                top = self.starts[i].top
                row["lambda"], row["lambda_error"] = top.lambda0, top.error
            return
        x, y = probe_set(self.problem.data, self.recipe)
        found = self.curvature.update(self.chain, x, y, check=mark == "end")
        for row, (value, error, reason) in zip(rows, found, strict=True):
            row["lambda"], row["lambda_error"] = value, error
            if reason is not None:
                row["reason"] = reason

    def _evaluate(self, rows: list[Row], f: Tensor) -> None:
        """Fill in what needs no curvature; ``f`` (R, N, O) are outputs on the present batch."""
        data, shares = self.problem.data, self.chain.inactivity()
        if self.recipe.batch is not None:
            f, shares = self.chain.look(self.x)
        if (count := evaluated_at_once(self.recipe)) is not None and count < len(self.x):
            _, shares = self.chain.look(self.x[:count])  # as a run alone counts them
        x_test, y_test = data.test
        tested = self.chain.look(x_test.flatten(1))[0] if len(x_test) else None
        columns: dict[str, list[Any]] = {
            "weight_norm": _weight_norms(self.chain),
            "train_loss": StackedLoss(self.problem.loss).values(f, data.y_train).tolist(),
            "test_loss": [None] * len(rows),
        }
        if tested is not None:
            columns["test_loss"] = StackedLoss(self.problem.loss).values(tested, y_test).tolist()
        if data.classes:
            columns["train_accuracy"] = _accuracies(f, data.y_train)
            columns["test_accuracy"] = [None] * len(rows)
            if tested is not None:
                columns["test_accuracy"] = _accuracies(tested, y_test)
        if shares is not None:
            off, dead = shares
            columns["inactive"] = off.mean(dim=0).tolist()
            columns["worst_inactive"] = off.amax(dim=0).tolist()
            columns["dead_units"] = dead.amax(dim=0).tolist()
        for name, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value  # type: ignore[literal-required]

    def _finished(self) -> list[Run]:
        for run, (joint, column) in zip(self.runs, self.joint, strict=False):  # none, or all
            run.projection = own = Projection(joint.vectors)
            own.growth, own.norm = [joint.growth[column]], [joint.norm[column]]
        return self.runs


def _weight_norms(chain: StackedChain) -> list[float]:
    """Euclidean norms of all parameters of each replica, accumulated in float64."""
    parts = [
        torch.linalg.vector_norm(p.flatten(1), dim=1, dtype=torch.float64)
        for p in chain.parameters.values()
    ]
    return torch.stack(parts).square().sum(dim=0).sqrt().tolist()


def _accuracies(f: Tensor, y: Tensor) -> list[float]:
    """Shares of samples whose largest output is the target class; y (N, O) one-hot or (N,)."""
    labels = y if y.dim() == 1 else y.argmax(dim=1)
    return (f.argmax(dim=2) == labels).double().mean(dim=1).tolist()
