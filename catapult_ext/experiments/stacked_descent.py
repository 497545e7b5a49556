"""Gradient descent at many learning rates from one start, as one program where nets are small."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from catapult_ext.experiments.curvature import top_curvatures
from catapult_ext.experiments.descent import LOOK_EVERY, Run, descend, tell_first
from catapult_ext.experiments.stacked_chain import DenseLayer, StackedChain, at_once, dense_layers
from catapult_ext.experiments.start import Start, probe_set
from catapult_ext.experiments.start import at_once as evaluated_at_once
from catapult_ext.losses import Loss, SquaredLoss
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
        size = max(1, _at_once(problem, layers, recipe))
    return [list(range(i, min(i + size, count))) for i in range(0, count, size)]


def stackable(problem: Start, recipe: Recipe) -> list[DenseLayer] | None:
    """The layers of the chain where runs can be stacked and gain by it, else None."""
    plain = recipe.steps is not None and recipe.final_rate is None and recipe.augment is None
    if not plain or recipe.probe_times or not problem.loss.convex:
        return None
    layers, shape = dense_layers(problem.model), problem.data.x_train.shape
    if layers is None or layers[0].inputs != math.prod(shape[1:]):
        return None
    if len(shape) != 2 and type(problem.model[0]) is not torch.nn.Flatten:  # type: ignore[index]
        return None
    return layers if _at_once(problem, layers, recipe) else None


def _at_once(problem: Start, layers: Sequence[DenseLayer], recipe: Recipe) -> int:
    x = problem.data.x_train
    samples = min(recipe.batch or len(x), len(x))
    return at_once(layers, samples, x.element_size(), x.device.type)


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
        seed: of the batches, which all runs share.
        on_step: called with step and batch loss, that of the first run left where runs are stacked.

    Cost:
        The same products as one run after the other, without their Python.
    """
    layers = stackable(problem, recipe)
    if layers is None:
        return [descend(problem, eta, recipe, seed=seed, on_step=on_step) for eta in etas]
    runs: list[Run] = []
    for part in chunks(problem, len(etas), recipe):
        rates = [etas[i] for i in part]
        runs += _Stack(problem, layers, rates, recipe, seed).descend(on_step)
    return runs


class _Stack:
    """One chunk of runs in progress."""

    def __init__(
        self,
        problem: Start,
        layers: Sequence[DenseLayer],
        etas: Sequence[float],
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.problem, self.recipe, self.etas = problem, recipe, list(etas)
        problem.model.load_state_dict(problem.state)
        self.chain = StackedChain.copies(layers, problem.model, len(etas), recipe.momentum)
        x, y = problem.data.train
        self.x, self.y = x.flatten(1), y
        self.batches = epochs(self.x, y, recipe.batch, seed)
        self.batch_loss = StackedLoss(problem.loss)
        self.runs = [Run() for _ in etas]
        vectors = problem.top.vectors
        self.joint = None if vectors is None else Projection(vectors, len(etas))
        self.vectors: Tensor = problem.top.vector.expand(len(etas), *problem.top.vector.shape)
        self._hold(list(range(len(etas))))

    def _hold(self, runs: list[int]) -> None:
        """The runs that are still in the stack, and their rates."""
        self.held = runs
        rates = [self.etas[i] for i in runs]
        self.rates = (
            torch.tensor(rates, dtype=torch.float64, device="cpu").to(self.x).view(-1, 1, 1)
        )

    def descend(self, on_step: OnStep | None) -> list[Run]:
        """All runs, each with the losses, rows and divergence of a run alone."""
        recipe = self.recipe
        marks, count = recipe.probe_steps(1.0), recipe.steps
        assert count is not None
        look_every = 1 if self.x.device.type == "cpu" else LOOK_EVERY
        noted: list[tuple[int, Tensor]] = []
        for number in range(count + 1):
            x, y = next(self.batches)
            f = self.chain.forward(x)
            values, slope = self.batch_loss(f, y)
            noted.append((number, self._numbers(values, slope)))
            if number in marks or number == count or len(noted) == look_every:
                kept = self._look(noted, on_step)
                f, slope, noted = f[kept], slope[kept], []
            if not self.held:
                break
            if number in marks:
                self._measure(number, marks[number], f)
            if number < count:
                self.chain.move(slope.mul_(self.rates), self._l2())
        return self._finished()

    def _l2(self) -> Tensor | None:
        return self.rates * self.recipe.l2 if self.recipe.l2 else None

    def _numbers(self, values: Tensor, slope: Tensor) -> Tensor:
        """(1 or 3, R) losses, growth and norm of the projections, on the device."""
        numbers = values.double()[None]
        if self.joint is None:
            return numbers
        residual = slope.flatten(1).T
        return torch.cat([numbers, self.joint.measure(residual, self.held)])

    def _look(self, noted: list[tuple[int, Tensor]], on_step: OnStep | None) -> Tensor | slice:
        """Read what was noted; leave out the runs that diverged, and return which stay."""
        alive = dict(enumerate(self.held))
        for number, numbers in noted:
            values, *projected = numbers.tolist()
            for at, index in list(alive.items()):
                run, loss = self.runs[index], values[at]
                run.losses.append(loss)
                if self.joint is not None and math.isfinite(loss):
                    self.joint.take([[row[at]] for row in projected], [index])
                if has_diverged(loss, self.problem.cut):
                    run.diverged_at = number
                    del alive[at]
            if on_step is not None and alive:
                on_step(number, values[next(iter(alive))])
        if len(alive) == len(self.held):
            return slice(None)
        kept = torch.tensor(list(alive), dtype=torch.int64, device=self.x.device)
        self.chain.keep(kept)
        self.vectors = self.vectors[kept]
        self._hold(list(alive.values()))
        return kept

    def _measure(self, number: int, mark: str, f: Tensor) -> None:
        """A row of every run that is left, at the present parameters; ``f`` is of the batch."""
        rows: list[Row] = [
            {"step": number, "time": self.etas[i] * number, "mark": mark} for i in self.held
        ]
        self._curvatures(number, rows)
        self._evaluate(rows, f)
        for i, row in zip(self.held, rows, strict=True):
            tell_first(row, self.runs[i].rows)
            self.runs[i].rows.append(row)

    def _curvatures(self, number: int, rows: list[Row]) -> None:
        problem, top = self.problem, self.problem.top
        if number == 0:
            for row in rows:
                row["lambda"], row["lambda_error"] = top.lambda0, top.error
            return
        x, y = probe_set(problem.data, self.recipe)
        found = top_curvatures(
            problem.model,
            self.chain,
            problem.loss,
            x,
            y,
            self.vectors,
            self.recipe.tol,
            **problem.options,
        )
        self.vectors = found.vectors
        for row, value, error, reason in zip(
            rows, found.values, found.errors, found.reasons, strict=True
        ):
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
        for i, run in enumerate(self.runs):
            if self.joint is not None:
                run.projection = own = Projection(self.joint.vectors)
                own.growth, own.norm = [self.joint.growth[i]], [self.joint.norm[i]]
        return self.runs


class StackedLoss:
    """One loss of R outputs (R, N, O) on targets that all of them share."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self._given: Tensor | None = None
        self._targets: Tensor | None = None
        self._normaliser = 1.0

    def _check(self, f: Tensor, y: Tensor) -> Tensor:
        """The targets in the layout of the outputs; checked where they are new."""
        if self._targets is None or y is not self._given:
            self._given, self._targets = y, self.loss.targets(f[0], y)
            if isinstance(self.loss, SquaredLoss):
                self._normaliser = self.loss.normaliser(f[0], y)
        return self._targets

    def values(self, f: Tensor, y: Tensor) -> Tensor:
        """(R,) losses, each from its own outputs alone."""
        return torch.func.vmap(self.loss.value, in_dims=(0, None))(f, self._check(f, y))

    def __call__(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) losses and their derivatives (R, N, O) with respect to the outputs."""
        targets = self._check(f, y)
        if isinstance(self.loss, SquaredLoss):
            slope = f - targets
            values = slope.square().sum(dim=(1, 2)) / (2 * self._normaliser)
            return values, slope.div_(self._normaliser)
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            values = self.values(leaf, y)
            (slope,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), slope


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
