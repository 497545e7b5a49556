"""Train one network at many learning rates and follow its curvature: the learning-rate sweep."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext import losses
from catapult_ext._model_call import Forward
from catapult_ext._processes import Ranks
from catapult_ext._store import RunFolder, environment, weights_digest
from catapult_ext.data import Dataset, as_dataset
from catapult_ext.experiments.descent import sweep_record
from catapult_ext.experiments.indexed import indexed
from catapult_ext.experiments.linearised import linearised_sweep
from catapult_ext.experiments.parts import Parts
from catapult_ext.experiments.result import SweepResult
from catapult_ext.experiments.stacked_descent import chunks, descend_all
from catapult_ext.experiments.start import Start, start
from catapult_ext.experiments.summary import summarise, verdict_of
from catapult_ext.experiments.sweep_config import SweepConfig, check_problem, describe_loss
from catapult_ext.figures.style import require_matplotlib
from catapult_ext.figures.sweep import CAPTIONS, sweep_figures
from catapult_ext.probes import hidden_width
from catapult_ext.probes.problem import Problem
from catapult_ext.runs import report
from catapult_ext.training import Recipe

_WHERE = "sweep"


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
        """Rates in units of c, after lambda_0 is known; ``finished`` of them are done already."""

    def rate(self, index: int, c: float) -> None:
        """Learning rate number ``index`` starts; several in turn where they train together."""

    def step(self, step: int, loss: float) -> None:
        """A step of the present rates was made; the loss is that of the first one left."""

    def done(self, index: int, c: float, phase: str) -> None:
        """Learning rate number ``index`` ended in ``phase``."""

    def stage(self, name: str) -> None:
        """Something else starts: the initial kernel, the linearised net, the report."""


def sweep(
    model: nn.Module,
    data: Any,
    *,
    c: Sequence[float] | None = None,
    eta: Sequence[float] | None = None,
    steps: int = 200,
    loss: Any = "half_mse",
    out: Path | str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    group: Any = None,
    forward: Forward | None = None,
    **settings: Any,
) -> SweepResult:
    """Train ``model`` by full-batch gradient descent at each learning rate, from the same start.

    Args:
        model: any module without active dropout; it is copied, not changed.
        data: a ``data.Dataset``, ``(x, y)`` or ``(x, y, x_test, y_test)``, y (N, O), one-hot for
            classes; or labels and batches in another form that
            :func:`~catapult_ext._batches.batch_of` takes, without a test set.
        c: learning rates in units of 1 / lambda_0: under squared loss lazy below 2. Give these or
            ``eta``.
        eta: learning rates.
        steps: gradient steps of every rate.
        loss: see :func:`catapult_ext.losses.resolve`; lambda is the
            top eigenvalue of its Gauss-Newton matrix.
        out: run folder: every finished rate is stored at once, a killed sweep resumes where it
            was, and the summary, pictures and a report are written at the end (this needs the
            extra ``experiments``). None keeps the results in memory only.
        fresh: start again in a folder that holds an earlier run.
        progress: called with what happens.
        group: None, ``"world"`` or a torch.distributed group, whose ranks share out the rates;
            every rank makes the same call with the same ``out``, which all must see.
        forward: ``forward(model, x)`` returns the outputs; None calls the model.
        **settings: the other fields of :class:`SweepConfig`.

    Returns:
        :class:`SweepResult`, rates ascending.

    Raises:
        TypeError: wrong types or dtypes, both or none of c and eta.
        ValueError: rates <= 0, sizes that do not fit, a loss without a Gauss-Newton matrix.
        RuntimeError: a rank that failed or was lost (named); a run folder that cannot be used
            (``runs.RunFolderError``), or matplotlib missing with ``out``.

    Cost:
        One forward and backward pass per step and rate, and a warm-started eigenvalue solve per
        probe step (about log2(steps) of them).  Rates of a small chain of dense layers train as one
        program, a chunk of them at once: as many as fit the cache of a core
        (``experiments.stacked_chain``).

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
        >>> result = cx.sweep(net, (torch.randn(8, 3), torch.randn(8, 1)), c=[0.5, 1.0], steps=4)
        >>> len(result.records)
        2
    """
    config = SweepConfig(
        c=None if c is None else _rates("c", c),
        eta=None if eta is None else _rates("eta", eta),
        steps=steps,
        **settings,
    )
    v.module(_WHERE, model)
    chosen, dropout = config.params, config.dropout
    found: Any
    if _plain(data) and forward is None and dropout is None:
        found = as_dataset(data, _WHERE)
        model = Problem(_WHERE, losses.OWN_LOSS, None, params=chosen).trained_copy(model)
    else:
        data = data.train if isinstance(data, Dataset) else data
        problem = Problem.of(loss, data, _WHERE, forward=forward, params=chosen, dropout=dropout)
        needs = "loss must have a Gauss-Newton matrix (give loss=)"
        v.require(problem.loss.convex, _WHERE, needs, problem.loss.name)
        model, found = indexed(problem.trained_copy(model), problem)
    return run(
        config,
        model,
        found,
        loss,
        out=out,
        fresh=fresh,
        progress=progress,
        group=group,
    )


def _plain(data: Any) -> bool:
    """Whether these are the tensors of a data set, targets (N,) or (N, O) as its outputs."""
    if isinstance(data, Dataset):
        return True
    pair = type(data) in (tuple, list) and len(data) in (2, 4)
    floats = pair and all(isinstance(t, Tensor) and t.is_floating_point() for t in data)
    return pair and (len(data) == 4 or (floats and data[1].dim() <= 2))


def _rates(name: str, values: object) -> tuple[float, ...]:
    """A sequence, array or tensor of rates as floats."""
    held = v.array(_WHERE, name, values, torch.float64)
    v.require(held.dim() == 1, _WHERE, f"{name} must be a list of rates", tuple(held.shape))
    return tuple(held.tolist())


def run(
    config: SweepConfig,
    model: nn.Module,
    data: Dataset,
    loss: Any = "half_mse",
    *,
    out: Path | str | None = None,
    fresh: bool = False,
    title: str = "Learning-rate sweep",
    progress: Progress | None = None,
    group: Any = None,
) -> SweepResult:
    """:func:`sweep` with its settings in a :class:`SweepConfig`.

    Examples:
        >>> from catapult_ext.experiments import SweepConfig, run
        >>> data = cx.data.teacher(16, 8, in_features=3)
        >>> result = run(SweepConfig(c=(0.5,), steps=2), nn.Linear(3, 1), data)
        >>> len(result.records)
        1
    """
    resolved = check_problem(model, data, loss, config.linearised, config.dropout)
    progress = progress or Progress()
    identity = {
        "experiment": "sweep",
        "version": 1,
        **config.identity(),
        "loss": describe_loss(loss),
        "model": str(model).splitlines(),
        "weights": weights_digest(model),
        "data": data.name,
        "data_digest": data.fingerprint(),
    }
    work = functools.partial(_Sweep, config, model, data, resolved, progress)
    if group is not None:
        v.require(out is not None, _WHERE, "group needs out, a run folder that all ranks see", out)
        return _shared(group, identity, work, out, fresh, title)
    if out is None:
        return work(Parts()).result()
    require_matplotlib()
    with RunFolder(out, identity, environment=environment(), fresh=fresh) as folder:
        return work(Parts(folder)).reported(title)


def _shared(
    group: Any,
    identity: dict[str, Any],
    work: Callable[[Parts], _Sweep],
    out: Any,
    fresh: bool,
    title: str,
) -> SweepResult:
    """One sweep on all ranks of ``group``: rank 0 opens the folder first, and reports last."""
    require_matplotlib()
    with Ranks.of(group, _WHERE) as ranks:
        first = ranks.rank == 0
        if not first:
            ranks.wait("open")
        with RunFolder(
            out,
            identity,
            environment=environment(),
            fresh=fresh and first,
            joined=not first,
        ) as folder:
            ranks.tell("open")
            made = work(Parts(folder, ranks))
            result = made.reported(title) if first else made.result()
            ranks.meet("end")
    return result


@dataclass
class _Sweep:
    """One sweep in progress: computes what the folder does not hold yet."""

    config: SweepConfig
    model: nn.Module
    data: Dataset
    loss: losses.Loss
    progress: Progress
    parts: Parts

    @property
    def recipe(self) -> Recipe:
        """Full-batch descent of the model as it is."""
        s = self.config
        top = s.top or self.data.outputs
        return Recipe(
            s.steps,
            probe_factor=s.probe_factor,
            probe_every=s.probe_every,
            batch_stats=s.batch_stats,
            tol=s.tol,
            top=top,
        )

    def reported(self, title: str) -> SweepResult:
        """:meth:`result`, written to the folder."""
        assert self.parts.folder is not None
        result = self.result()
        self.progress.stage("writing the report")
        pictures = sweep_figures(result.summary, result.records)
        report.write(self.parts.folder, title, result, pictures, CAPTIONS)
        return result

    def result(self) -> SweepResult:
        """Compute what is missing, alone or with the other ranks, and read all of it."""
        rates = self.config.c or self.config.eta or ()
        names = [f"rate_{i:04d}" for i in range(len(rates))]
        wanted = ["initial", *names, *(["linearised"] if self.config.linearised else [])]
        missing = self.parts.missing(wanted)
        if missing:
            self._compute(names, missing)
        if self.parts.ranks is not None:
            self.progress.stage("waiting for the other ranks")
        initial, *records = self.parts.collect(wanted)
        linear = records.pop()["rates"] if self.config.linearised else None
        summary = summarise(initial, records, linear, self.config.steps)
        path = None if self.parts.folder is None else self.parts.folder.path
        return SweepResult(self.config, summary, records, linear, path)

    def _compute(self, names: list[str], missing: list[str]) -> None:
        self.progress.stage("the kernel at the start")
        problem, found = self._problem()
        if "initial" in missing:
            self.parts.compute({"initial": lambda: found})
        (initial,) = self.parts.collect(["initial"])  # the same rates on all ranks
        rates = dict(zip(names, self.config.rates(initial["lambda0"]), strict=True))

        def job(chunk: list[int]) -> list[dict[str, Any]]:
            chosen = [rates[names[index]] for index in chunk]
            for index, (c, _) in zip(chunk, chosen, strict=True):
                self.progress.rate(index, c)
            etas = [eta for _, eta in chosen]
            made = descend_all(problem, etas, self.recipe, on_step=self._step)
            return [
                {"c": c, **sweep_record(run, eta)}
                for run, (c, eta) in zip(made, chosen, strict=True)
            ]

        def linearised() -> dict[str, Any]:
            self.progress.stage("the net linearised at the start")
            etas = [eta for _, eta in rates.values()]
            return {"rates": linearised_sweep(problem, etas, self.config.steps)}

        def done(name: str, record: dict[str, Any]) -> None:
            if name in rates:
                phase = verdict_of(record, initial).phase
                self.progress.done(names.index(name), record["c"], phase)

        left = [i for i, name in enumerate(names) if name in missing]
        self.progress.begin(
            [c for c, _ in rates.values()], self.config.steps, len(names) - len(left)
        )
        self.parts.done = done
        for chunk in chunks(problem, len(names), self.recipe):
            held = [names[i] for i in chunk]
            self.parts.compute_together(held, functools.partial(job, chunk))
        if "linearised" in missing:
            self.parts.compute({"linearised": linearised})

    def _step(self, step: int, loss: float) -> None:
        if self.parts.ranks is not None:
            self.parts.ranks.check()
        self.progress.step(step, loss)

    def _problem(self) -> tuple[Start, dict[str, Any]]:
        config, data = self.config, self.data
        options = {"dropout": config.dropout, "memory_budget": config.memory_budget}
        options = {name: value for name, value in options.items() if value is not None}
        problem = start(
            self.model, data, self.loss, self.recipe, cut=config.cut, where=_WHERE, options=options
        )
        model, top = problem.model, problem.top
        initial = {
            "lambda0": top.lambda0,
            "lambda0_error": top.error,
            "top_ratios": list(top.ratios),
            "loss0": problem.loss0,
            "cut": problem.cut,
            "squared": problem.loss.squared,
            "width": hidden_width(model),
            "parameters": sum(p.numel() for p in model.parameters()),
            "samples": len(data.x_train),
            "outputs": data.outputs,
        }
        return problem, initial
