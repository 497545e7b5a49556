"""A sweep in progress: computes what its folder does not hold yet, rates and seeds together."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from catapult_ext import _progress, losses
from catapult_ext._progress import Counter
from catapult_ext.data import Dataset
from catapult_ext.experiments.descent import sweep_record
from catapult_ext.experiments.linearised import linearised_sweep
from catapult_ext.experiments.parts import Parts
from catapult_ext.experiments.result import SweepResult
from catapult_ext.experiments.seed_sweeps import SeedSweeps
from catapult_ext.experiments.stacked_descent import chunks, descend_runs
from catapult_ext.experiments.start import Start, start
from catapult_ext.experiments.summary import summarise, verdict_of
from catapult_ext.experiments.sweep_config import SweepConfig
from catapult_ext.probes import hidden_width
from catapult_ext.training import Recipe


class Progress:
    """Callbacks of a running sweep; override the ones of interest.

    Examples:
        >>> from catapult_ext.experiments import Progress
        >>> class Phases(Progress):
        ...     def done(self, index, c, phase):
        ...         print(c, phase)
        >>> data = torch.randn(8, 3), torch.randn(8, 1)
        >>> _ = cx.sweep(nn.Linear(3, 1), data, c=[0.5], steps=8, progress=Phases())
        0.5 lazy
    """

    def begin(self, rates: list[float], steps: int, finished: int) -> None:
        """The rates as c, once lambda_0 is known; ``finished`` of them are already stored."""

    def rate(self, index: int, c: float) -> None:
        """Learning rate number ``index`` starts; called for each of the rates trained together."""

    def step(self, step: int, loss: float) -> None:
        """A step of the current rates is done; the loss is that of the first rate still running."""

    def done(self, index: int, c: float, phase: str) -> None:
        """Learning rate number ``index`` ended in ``phase``."""

    def stage(self, name: str) -> None:
        """Something else starts: the initial kernel, the linearised net, the report."""


class _Counted(Progress):
    """Counts the learning rates that are done."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def begin(self, rates: list[float], steps: int, finished: int) -> None:
        self.counter.total = len(rates)
        self.counter.at(finished)

    def done(self, index: int, c: float, phase: str) -> None:
        self.counter.add()


@contextmanager
def watched(progress: Progress | _progress.Progress, where: str) -> Iterator[Progress]:
    """Callbacks for ``progress=`` of a sweep; see :mod:`catapult_ext._progress`."""
    if isinstance(progress, Progress):
        yield progress
        return
    with _progress.counted(progress, where, 0, "learning rates") as counter:
        yield _Counted(counter)


@dataclass
class Sweeping:
    """The sweeps of one model, or of several of one architecture.

    Parts are ``initial``, ``rate_0000`` and so on, and ``linearised``; of several models each has
    the prefix ``seed_0000_``, the number of its model.

    Attributes:
        first_seed: number of the first of several models; None for a single one.
    """

    config: SweepConfig
    models: list[nn.Module]
    first_seed: int | None
    data: Dataset
    loss: losses.Loss
    progress: Progress
    parts: Parts
    starts: dict[int, Start] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """Full-batch descent of the model as it is."""
        s = self.config
        return Recipe(
            s.steps,
            probe_factor=s.probe_factor,
            probe_every=s.probe_every,
            batch_stats=s.batch_stats,
            tol=s.tol,
            top=s.dimension(self.data.outputs),
            probes=s.probes,
        )

    def result(self) -> SweepResult | SeedSweeps:
        """Compute what is missing, alone or with the other ranks, and read all of it."""
        missing = set(self.parts.missing(n for s in range(len(self.models)) for n in self._all(s)))
        if missing:
            self._compute(missing)
        if self.parts.ranks is not None:
            self.progress.stage("waiting for the other ranks")
        found = [self._one(seed) for seed in range(len(self.models))]
        return found[0] if self.first_seed is None else SeedSweeps(found, self.first_seed)

    def _one(self, seed: int) -> SweepResult:
        initial, *records = self.parts.collect(self._all(seed))
        linear = records.pop()["rates"] if self.config.linearised else None
        summary = summarise(initial, records, linear, self.config.steps)
        path = None if self.parts.folder is None else self.parts.folder.path
        return SweepResult(self.config, summary, records, linear, path)

    def _name(self, seed: int, part: str) -> str:
        return part if self.first_seed is None else f"seed_{self.first_seed + seed:04d}_{part}"

    def _rates(self, seed: int) -> list[str]:
        count = len(self.config.c or self.config.eta or ())
        return [self._name(seed, f"rate_{i:04d}") for i in range(count)]

    def _all(self, seed: int) -> list[str]:
        """The parts of one model, in the order of their use."""
        last = [self._name(seed, "linearised")] if self.config.linearised else []
        return [self._name(seed, "initial"), *self._rates(seed), *last]

    def _compute(self, missing: set[str]) -> None:
        self.progress.stage("the kernel at the start")
        seeds = range(len(self.models))
        begun = [seed for seed in seeds if missing & set(self._all(seed))]
        for seed in begun:
            name = self._name(seed, "initial")
            if name in missing:
                self.parts.compute({name: functools.partial(self._initial, seed)})
        # the same rates on all ranks
        initials = self.parts.collect(self._name(seed, "initial") for seed in seeds)
        names = [name for seed in seeds for name in self._rates(seed)]
        rates = [rate for found in initials for rate in self.config.rates(found["lambda0"])]
        owner = [seed for seed in seeds for _ in self._rates(seed)]

        def job(chunk: list[int]) -> list[dict[str, Any]]:
            for index in chunk:
                self.progress.rate(index, rates[index][0])
            runs = [(self._start(owner[index]), rates[index][1]) for index in chunk]
            made = descend_runs(runs, self.recipe, on_step=self._step)
            return [
                {"c": rates[index][0], **sweep_record(run, rates[index][1])}
                for run, index in zip(made, chunk, strict=True)
            ]

        def done(name: str, record: dict[str, Any]) -> None:
            if name in names:
                index = names.index(name)
                phase = verdict_of(record, initials[owner[index]]).phase
                self.progress.done(index, record["c"], phase)

        left = sum(name in missing for name in names)
        self.progress.begin([c for c, _ in rates], self.config.steps, len(names) - left)
        self.parts.done = done
        for chunk in chunks(self._start(begun[0]), len(names), self.recipe):
            held = [names[i] for i in chunk]
            self.parts.compute_together(held, functools.partial(job, chunk))
        for seed in begun:
            name = self._name(seed, "linearised")
            if name in missing:
                etas = [eta for (_, eta), own in zip(rates, owner, strict=True) if own == seed]
                self.parts.compute({name: functools.partial(self._linearised, seed, etas)})

    def _linearised(self, seed: int, etas: list[float]) -> dict[str, Any]:
        self.progress.stage("the net linearised at the start")
        return {"rates": linearised_sweep(self._start(seed), etas, self.config.steps)}

    def _step(self, step: int, loss: float) -> None:
        if self.parts.ranks is not None:
            self.parts.ranks.check()
        self.progress.step(step, loss)

    def _start(self, seed: int) -> Start:
        """One model at its start, solved for once."""
        if seed not in self.starts:
            config = self.config
            options = {"dropout": config.dropout, "memory_budget": config.memory_budget}
            options = {name: value for name, value in options.items() if value is not None}
            self.starts[seed] = start(
                self.models[seed],
                self.data,
                self.loss,
                self.recipe,
                cut=config.cut,
                where="sweep",
                options=options,
            )
        return self.starts[seed]

    def _initial(self, seed: int) -> dict[str, Any]:
        problem = self._start(seed)
        model, top = problem.model, problem.top
        return {
            "lambda0": top.lambda0,
            "lambda0_error": top.error,
            "top_ratios": list(top.ratios),
            "loss0": problem.loss0,
            "cut": problem.cut,
            "squared": problem.loss.squared,
            "width": hidden_width(model),
            "parameters": sum(p.numel() for p in model.parameters()),
            "samples": len(self.data.x_train),
            "outputs": self.data.outputs,
        }
